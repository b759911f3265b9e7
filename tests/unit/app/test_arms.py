"""The runs of a comparison: composed, given a budget, and refused in one sentence."""

import re
from dataclasses import replace
from functools import cache

import pytest

from lightning_mmrl.app.arms import folds_named, planned
from lightning_mmrl.app.shared_stages import segments
from lightning_mmrl.config.comparisons import comparison_of
from lightning_mmrl.config.compose import compose
from lightning_mmrl.errors import ConfigError

EXPERIMENT = ["experiment=emotions_sft_only", "+stage@stages.reason=tiny/reason"]
SFT, RL = "order=[pretrain,cold_start]", "order=[pretrain,reason]"
BOTH, OTHER_WAY = "order=[pretrain,cold_start,reason]", "order=[pretrain,reason,cold_start]"
ARMS = {"sft": [SFT], "both": [BOTH], "other_way": [OTHER_WAY]}


@cache
def composed(arguments):
    return compose(list(arguments))


def plan(arms, *given, folds=None, **keys):
    settings = comparison_of({"overrides": EXPERIMENT, "arms": arms, **keys})
    return planned(settings, given, "mine", folds or {None: []}, lambda arguments: composed(tuple(arguments)))


def test_each_arm_is_composed_with_each_seed_in_a_folder_of_its_own():
    runs = plan(ARMS, "output_dir=/out", seeds=[0, 3])
    assert [run.name for run in runs] == [f"{arm}-seed{seed}" for seed in (0, 3) for arm in ARMS]
    assert {run.config.seed for run in runs} == {0, 3}
    assert str(runs[1].directory) == "/out/mine/runs/both-seed0"
    assert runs[1].config.order == ["pretrain", "cold_start", "reason"]
    assert runs[0].command("shared", "x")[-1] == "run_name=mine/shared/x"


def test_an_arm_wins_over_what_is_given_for_all_arms():
    runs = plan({"a": [SFT, "stages.cold_start.num_steps=7"], "b": [SFT]}, "stages.cold_start.num_steps=9")
    assert [run.config.stages["cold_start"].num_steps for run in runs] == [7, 9]


def test_folds_choose_their_data_and_name_the_runs():
    arms = {"a": [SFT], "b": [RL]}
    named = folds_named(["1", "2"], ["evaluation.sets.test={fold}.jsonl"])
    runs = plan(arms, "evaluation.sets.test={fold}.jsonl", folds=named)
    assert [run.name for run in runs] == ["a-seed0-fold_1", "b-seed0-fold_1", "a-seed0-fold_2", "b-seed0-fold_2"]
    assert runs[2].config.evaluation.sets["test"].manifest == "2.jsonl"
    runs = plan(arms, folds={"fold_1": ["data.root=/one"], "fold_2": ["data.root=/two"]})
    assert [run.config.data.root for run in runs] == ["/one", "/one", "/two", "/two"]
    assert runs[0].name == "a-seed0-fold_1"


def test_a_debug_run_keeps_its_runs_together():
    runs = plan({"a": [SFT], "b": [BOTH]}, "output_dir=/out", "debug=fast")
    assert len({run.comparison for run in runs}) == 1
    assert runs[0].comparison.name.endswith("-mine")
    assert runs[0].directory.name == "a-seed0"


def test_the_budget_is_apart_from_what_all_arms_share():
    shares = {"cold_start": 0.25, "reason": 0.75}
    runs = plan({**ARMS, "both": {"overrides": [BOTH], "shares": shares}}, budget={"steps": 400})
    found = {run.arm: run.config.budget for run in runs}
    assert {arm: each.apart for arm, each in found.items()} == {arm: ["pretrain"] for arm in ARMS}
    assert found["sft"].shares == {"cold_start": 1.0}
    assert found["other_way"].shares == {"cold_start": 1.0}
    assert found["both"].shares == shares
    assert {each.total for each in found.values()} == {400}


def test_shares_of_all_arms_are_in_proportion_among_the_stages_of_each():
    arms = {**ARMS, "own": {"overrides": [BOTH], "shares": {"reason": 1.0}}}
    runs = plan(arms, budget={"steps": 400}, shares={"cold_start": 0.25, "reason": 0.75})
    both = {"cold_start": 0.25, "reason": 0.75}
    found = {run.arm: run.config.budget.shares for run in runs}
    assert found == {"sft": {"cold_start": 1.0}, "both": both, "other_way": both, "own": {"reason": 1.0}}


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ({"cold_strat": 1.0}, "did you mean 'cold_start'"),
        ({"cold_start": -1.0}, "shares.cold_start is -1.0; it must be above 0"),
        ({"reason": 1.0}, "none of the stages that arm sft trains; give pretrain, cold_start one"),
    ],
)
def test_shares_that_an_arm_cannot_have_are_refused(shares, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        plan(ARMS, budget={"steps": 400}, shares=shares)


@pytest.mark.parametrize("budget", [{"flops": 1.5e13}, {"seconds": 2.5}])
def test_a_budget_is_in_any_measure(budget):
    [(measure, limit)] = budget.items()
    assert {getattr(run.config.budget, measure) for run in plan({"a": [SFT], "b": [RL]}, budget=budget)} == {limit}


def test_a_shared_stage_that_an_arm_gives_a_share_counts():
    """cold_start is the first stage of both, and its length is the budget's in one of them."""
    arms = {"short": {"overrides": [BOTH], "shares": {"cold_start": 0.2, "reason": 0.8}}, "plain": [BOTH]}
    runs = plan(arms, budget={"steps": 400})
    assert [run.config.budget.apart for run in runs] == [["pretrain"]] * 2
    arms["short"]["overrides"] = [BOTH, "stages.reason.optimizer.lr=1e-5"]
    arms["short"]["shares"] = {}
    runs = plan(arms, budget={"steps": 400})
    assert [run.config.budget.apart for run in runs] == [["pretrain", "cold_start"]] * 2


def test_orders_over_the_same_manifests_need_no_permission():
    assert len(plan(ARMS)) == 3


DIFFERING = {
    "base": ("model.dtype=bfloat16", "model.dtype: float32 -> bfloat16"),
    "data": ("data.root=/elsewhere", "data.root: data/emotions -> /elsewhere"),
    "evaluation": ("evaluation.limit=3", "evaluation.limit: None -> 3"),
}


@pytest.mark.parametrize("kind", DIFFERING)
def test_arms_that_differ_unsaid_are_refused_with_keys_and_values(kind):
    override, line = DIFFERING[kind]
    arms = {"a": [SFT], "b": [RL, override]}
    with pytest.raises(ConfigError) as error:
        plan(arms)
    assert f"arms a and b differ in {kind} (" in str(error.value)
    assert line in str(error.value)
    assert f"may_differ: [{kind}]" in str(error.value)
    assert len(plan(arms, may_differ=[kind])) == 2


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("stages.cold_start.data.manifest=other.jsonl", "data"),
        ("stages.cold_start.data.limit=3", "data"),
        ("stages.cold_start.checkpoint=/other", "base"),
        ("stages.cold_start.evaluation_sets=[test]", "evaluation"),
        ("prompt.suffix=Why?", "evaluation"),
    ],
)
def test_a_stage_of_both_arms_reads_and_is_evaluated_alike(override, kind):
    with pytest.raises(ConfigError, match=f"arms a and b differ in {kind}"):
        plan({"a": [SFT], "b": [SFT, override]})


REFUSED = {
    "none": ({}, {}, "the comparison has no arms; name at least two"),
    "one": ({"a": [SFT]}, {}, "the comparison has one arm, a; name at least two"),
    "name": ({"a/b": [SFT], "c": [RL]}, {}, "a name in arms is a/b; it must be letters"),
    "equal": ({"a": [SFT], "b": [SFT]}, {}, "arms a and b have the same configuration"),
    "equal in other words": ({"a": [SFT], "b": [RL, SFT]}, {}, "arms a and b have the same configuration"),
    "baseline": (ARMS, {"baseline": "bot"}, "baseline is 'bot', which is no choice; did you mean 'both'?"),
    "seed twice": (ARMS, {"seeds": [0, 1, 0]}, "seeds has 0 twice"),
    "no seed": (ARMS, {"seeds": []}, "seeds is []; it must be at least one seed"),
    "seed": (ARMS, {"seeds": [-1]}, "seeds is -1; it must be whole numbers from 0"),
    "run_name": ({**ARMS, "x": [SFT, "run_name=x"]}, {}, "arms.x sets run_name, which the comparison sets"),
    "output_dir": ({**ARMS, "x": [SFT, "output_dir=x"]}, {}, "arms.x sets output_dir"),
    "own seed": (
        {**ARMS, "x": [SFT, "seed=1"]},
        {},
        "arms.x sets seed, which the comparison sets",
    ),
    "key": ({**ARMS, "x": [SFT, "stages.cold_start.num_step=1"]}, {}, "arm x: stages.cold_start.num_step: unknown key"),
    "stage": ({**ARMS, "x": ["order=[pretrain,cold]"]}, {}, "arm x: order[1]: unknown stage 'cold'"),
    "two limits": (ARMS, {"budget": {"steps": 1, "flops": 1}}, "budget has flops, steps; give exactly one"),
    "no limit": (ARMS, {"budget": {}}, "budget has no limit; give exactly one"),
    "apart": (ARMS, {"budget": {"steps": 9, "apart": ["pretrain"]}}, "leave out apart"),
    "own budget": (
        {**ARMS, "x": [SFT, "++budget={steps:3}"]},
        {"budget": {"steps": 9}},
        "arms.x sets budget, and the comparison has a budget of its own",
    ),
    "no room": (ARMS, {"budget": {"steps": 10}}, "which leaves no step for stages.reason"),
    "set": (ARMS, {"measure": {"set": "tets"}}, "measure.set is 'tets', and arm sft is not evaluated on such a set"),
    "metric": (
        ARMS,
        {"measure": {"metric": "uarr"}},
        "measure.metric is 'uarr', which is no choice; did you",
    ),
    "shares": (
        {**ARMS, "x": {"overrides": [SFT], "shares": {"reason": 1}}},
        {"budget": {"steps": 400}},
        "arms.x.shares.reason: the arm trains no stage of this name",
    ),
    "sum": (
        {**ARMS, "x": {"overrides": [RL], "shares": {"reason": 0.5}}},
        {"budget": {"steps": 400}},
        "arm x: budget.shares sum up to 0.5",
    ),
    "shares of nothing": (
        {**ARMS, "x": {"overrides": [SFT], "shares": {"cold_start": 1}}},
        {},
        "arms.x.shares are given, and there is no budget to share",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_fault_is_one_sentence_before_anything_trains(name):
    arms, keys, message = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        plan(arms, **keys)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_changed_key_of_a_shared_stage_is_shared_no_more():
    arms = {"a": [SFT], "b": [BOTH], "c": [BOTH, "stages.cold_start.optimizer.lr=1e-5"]}
    found = {(each.until, tuple(run.arm for run in each.runs)) for each in segments(plan(arms))}
    assert found == {("pretrain", ("a", "b", "c")), ("cold_start", ("a", "b"))}
    found = {(each.until, tuple(run.arm for run in each.runs)) for each in segments(plan(arms, budget={"steps": 400}))}
    assert found == {("pretrain", ("a", "b", "c"))}, "the budget ends cold_start in one arm alone"


@pytest.mark.parametrize(
    "override",
    [
        "+rollout.seed=7",
        "trainer.num_threads=3",
        "trainer.devices=2",
        "trainer.precision=64-true",
        "stages.cold_start.trainer.precision=64-true",
        "stages.cold_start.max_bad_steps=3",
        "stages.cold_start.when_empty=skip",
        "stages.cold_start.tokens_per_microbatch=64",
        "+model.sharing=false",
        "+data.media.max_duration_s=3",
    ],
)
def test_arms_that_differ_beside_the_digests_train_their_own_weights(override):
    plans = plan({"a": [SFT], "b": [SFT, override]}, may_differ=["base", "data"])
    assert "cold_start" not in [name for each in segments(plans) for name in each.stages]


def test_arms_that_differ_in_no_result_are_refused():
    for override in ("state.keep=3", "tracking.system_every_s=null", "stages.reason.num_steps=3"):
        with pytest.raises(ConfigError, match="arms a and b have the same configuration, or differ in stages that"):
            plan({"a": [SFT], "b": [SFT, override]})


def test_names_of_folds_are_given_once_and_have_a_place():
    with pytest.raises(ConfigError, match="folds has 1 twice"):
        folds_named(["1", "1"], ["x={fold}"])
    with pytest.raises(ConfigError, match=r"no override has \{fold\}"):
        folds_named(["1", "2"], ["x=1"])


def test_shares_make_arms_differ():
    shares = [{"cold_start": 0.2, "reason": 0.8}, {"cold_start": 0.4, "reason": 0.6}]
    arms = {name: {"overrides": [BOTH], "shares": each} for name, each in zip("ab", shares, strict=True)}
    runs = plan(arms, budget={"steps": 400})
    assert [run.config.budget.shares for run in runs] == shares
    assert replace(runs[0].config, budget=None, run_name="") == replace(runs[1].config, budget=None, run_name="")
