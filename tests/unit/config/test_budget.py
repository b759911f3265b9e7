"""The budget of a run: cumulative limits, what of it is part of a stage's content, and what is refused."""

import math

import pytest

from lightning_mmrl.config.budget import counted_before, known_steps, limits, uncounted
from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.specs import stage_specs
from lightning_mmrl.errors import ConfigError

EXPERIMENT = "experiment=quickstart"
SHARED = "budget={flops: 2.0e13, apart: [pretrain], shares: {reason: 0.9, cold_start: 0.1}}"


def budgeted(budget, *more):
    return compose([EXPERIMENT, f"budget={{{budget}}}", *more])


def test_the_limit_of_a_stage_is_the_sum_of_the_shares_up_to_it():
    config = compose([EXPERIMENT, SHARED])
    assert limits(config) == {"cold_start": 2e12, "reason": 2e13}
    assert [*limits(config)] == ["cold_start", "reason"]  # as they run, not as they are written
    assert counted_before(config, "reason") == ["cold_start"]
    thirds = budgeted("steps: 10, shares: {pretrain: 0.333333, cold_start: 0.333333, reason: 0.333333}")
    assert limits(thirds)["reason"] == 10
    assert limits(compose([EXPERIMENT])) == {}


def test_the_last_stage_gets_the_whole_budget_if_there_are_no_shares():
    assert limits(budgeted("steps: 450")) == {"reason": 450}
    assert counted_before(budgeted("steps: 450"), "reason") == ["pretrain", "cold_start"]


def test_steps_are_known_before():
    """Pretraining has 100 steps of its own, which count or not."""
    steps = "steps: 200, shares: {cold_start: 0.625, reason: 0.375}"
    assert known_steps(budgeted(steps)) == {"pretrain": 100, "cold_start": 25, "reason": 75}
    assert known_steps(budgeted(f"{steps}, apart: [pretrain]")) == {"pretrain": 100, "cold_start": 125, "reason": 75}
    halves = "steps: 5, apart: [pretrain], shares: {cold_start: 0.5, reason: 0.5}"
    assert known_steps(budgeted(halves)) == {"pretrain": 100, "cold_start": 2, "reason": 3}  # the earlier of two


def test_steps_after_a_stage_of_unknown_length_are_known_from_the_next_limit_on():
    """Such a stage may end at its first validation, so a small budget may suffice."""
    early = "++stages.pretrain.stop_when={metric: validation/uar, at_least: 0.5}", "++stages.pretrain.validate_every=5"
    shared = "steps: 90, shares: {cold_start: 0.5, reason: 0.5}"
    assert known_steps(budgeted(shared, *early)) == {"pretrain": math.inf, "cold_start": math.inf, "reason": 45}
    assert known_steps(budgeted("steps: 90", *early, "order=[pretrain,reason]"))["reason"] == math.inf
    apart = known_steps(budgeted(f"{shared}, apart: [pretrain]", *early))
    assert apart == {"pretrain": math.inf, "cold_start": 45, "reason": 45}
    with pytest.raises(ConfigError, match=r"leaves no step for stages\.reason"):
        budgeted("steps: 90, shares: {cold_start: 0.995, reason: 0.005}", *early)


def contents(*overrides):
    return {spec.name: (spec.content, spec.digest) for spec in stage_specs(compose([EXPERIMENT, *overrides]))}


def test_a_limit_is_part_of_the_content_of_the_stages_that_it_ends_alone():
    plain, found = contents(), contents(SHARED)
    assert not [key for content, _ in plain.values() for key in content if key.startswith("budget")]
    assert found["pretrain"] == plain["pretrain"]
    for name, limit, after in (("cold_start", 2e12, []), ("reason", 2e13, ["cold_start"])):
        content, digest = found[name]
        assert content == {**plain[name][0], "budget.flops": limit, "budget.after": after}
        assert digest != plain[name][1]


def test_equal_limits_are_the_same_stage_whatever_follows():
    """So that arms of a comparison share it."""
    alone = contents("order=[pretrain,cold_start]", "budget={flops: 2.0e12, apart: [pretrain]}")
    assert alone["cold_start"] == contents(SHARED)["cold_start"]


def test_a_stage_before_whose_costs_count_is_part_of_the_digest():
    own = "stages.reason.start_from=base"
    first, second = (contents(own, SHARED, f"stages.cold_start.optimizer.lr={rate}")["reason"] for rate in (1e-4, 1e-5))
    assert first[0] == second[0]
    assert first[1] != second[1]
    apart = "budget={flops: 2.0e13, apart: [pretrain, cold_start]}"
    first, second = (contents(own, apart, f"stages.cold_start.optimizer.lr={rate}")["reason"] for rate in (1e-4, 1e-5))
    assert first == second


@pytest.mark.parametrize(
    ("budget", "more", "message"),
    [
        ("apart: [pretrain]", (), "budget has no limit; give exactly one of flops, steps, seconds"),
        ("flops: 1e9, steps: 3", (), "budget has flops and steps; give exactly one"),
        ("steps: 0", (), "budget.steps is 0; it must be at least 1"),
        ("seconds: -1", (), "budget.seconds is -1.0; it must be above 0"),
        ("steps: 9, shares: {cold_start: 0.3, reason: 0.6}", (), "budget.shares sum up to 0.9; they must sum up to 1"),
        ("steps: 9, shares: {cold_start: -0.5, reason: 1.5}", (), "budget.shares.cold_start is -0.5; it must be ab"),
        ("steps: 9, shares: {reson: 1}", (), "budget.shares is 'reson', .* did you mean 'reason'"),
        ("steps: 9, apart: [pretrian]", (), "budget.apart is 'pretrian', .* did you mean 'pretrain'"),
        ("steps: 9, shares: {cold_start: 1}", (), "budget.shares has no reason, the last stage that trains"),
        ("steps: 9, apart: [reason]", (), "budget.apart is reason; it must be without the last stage that trains"),
        (
            "steps: 9, apart: [cold_start], shares: {cold_start: 0.5, reason: 0.5}",
            (),
            "budget.shares.cold_start is 0.5; it must be left out: the stage is in budget.apart",
        ),
        ("steps: 9, apart: [pretrain], shares: {cold_start: 0.01, reason: 0.99}", (), "leaves no step for stages.col"),
        ("steps: 90, shares: {cold_start: 0.5, reason: 0.5}", (), "is 90, which leaves no step for stages.cold_start"),
        ("stepz: 9", (), "budget.stepz: unknown key; did you mean 'steps'"),
        (
            "steps: 900",
            ("++stages.reason.stop_when={metric: validation/uar, at_least: 0.5}",),
            "stages.reason.stop_when is set, and budget.shares ends the stage by its costs",
        ),
        (
            "steps: 900",
            ("rollout.lag=1", "+stages.reason.algorithm.correction._target_=lightning_mmrl.algorithms.corrections."
             "importance.ImportanceCorrection"),
            "rollout.lag is 1, and the budget ends stages.reason at a step that is not known before",
        ),
    ],
)  # fmt: skip
def test_a_budget_that_cannot_work_is_refused_in_one_sentence(budget, more, message):
    with pytest.raises(ConfigError, match=message) as caught:
        budgeted(budget, *more)
    assert "\n" not in str(caught.value)


ASKED = "{model: m}", "{base_url: 'http://127.0.0.1:1/v1'}"


def with_judge(where):
    node = f"{{_target_: lightning_mmrl.rewards.llm_judge.LlmJudge, {where}}}"
    return f"+stages.reason.rewards.components.judge={node}", "+stages.reason.rewards.weights.judge=1"


@pytest.mark.parametrize("where", ["expert: {}, endpoint: {}".format(*ASKED), "local_checkpoint: models/judge"])
def test_a_judge_is_named_as_not_counted_wherever_it_runs(where):
    judge = with_judge(where)
    named = "budget.flops does not count the operations of the judges of stages.reason"
    assert uncounted(compose([EXPERIMENT, SHARED, *judge])) == named
    assert uncounted(compose([EXPERIMENT, SHARED])) is None
    assert uncounted(budgeted("seconds: 900", *judge)) is None  # its time counts
    assert uncounted(compose([EXPERIMENT, *judge])) is None


@pytest.mark.parametrize("apart", [False, True])
def test_the_expert_of_a_stage_that_counts_is_named(apart):
    expert = [f"stages.sort.{key}={value}" for key, value in zip(("expert", "endpoint"), ASKED, strict=True)]
    stages = ["order=[draw,sort,reason]", "+stage@stages.draw=sample", "+stage@stages.sort=route"]
    budget = f"flops: 1e9, apart: [{'sort' if apart else ''}]"
    given = budgeted(budget, *stages, *expert, *with_judge("local_checkpoint: models/judge"))
    whose = "" if apart else "the expert of stages.sort and "
    named = f"budget.flops does not count the operations of {whose}the judges of stages.reason"
    assert uncounted(given) == named


def test_passes_give_the_nominal_length():
    config = budgeted("steps: 900", "stages.reason.num_steps=null", "stages.reason.num_epochs=2")
    assert config.stages["reason"].num_epochs == 2


def test_a_debug_run_drops_its_budget():
    said = []
    assert compose([EXPERIMENT, "debug=fast", "budget={steps: 900}"]).budget is None
    assert said == []


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("validate_every=null", "stages.reason.keep_best needs validations; set stages.reason.validate_every"),
        ("keep_best=yes please", "stages.reason.keep_best is yes please; it must be true or false"),
    ],
)
def test_the_best_weights_need_validations(key, message):
    with pytest.raises(ConfigError, match=message):
        compose([EXPERIMENT, "++stages.reason.keep_best=true", f"++stages.reason.{key}"])


def test_best_weights_change_a_stage_only_if_they_are_asked_for():
    plain, kept = contents(), contents("++stages.reason.keep_best=true")
    assert contents("++stages.reason.keep_best=false") == plain
    assert kept["reason"][0].keys() - plain["reason"][0].keys() >= {"stage.keep_best"}
    assert kept["cold_start"] == plain["cold_start"]
