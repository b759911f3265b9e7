"""A stage that a budget ends: as without one if the budget is its steps, and exactly where it ends if it is killed."""

from functools import cache
from itertools import pairwise

import omni
import pytest
from exact_cases import STEPS, Stage, assert_equal, kill_in, logged, plain

from lightning_mmrl.algorithms.schedules import WarmupCosine
from lightning_mmrl.errors import StageError
from lightning_mmrl.stages.costs import CostMeter
from lightning_mmrl.training.interruption import Interrupted, Interruption
from lightning_mmrl.types.costs import StageBudget

pytestmark = pytest.mark.slow

FALLS = WarmupCosine(warmup_steps=2, final_fraction=0.0)
BEFORE = 10**9


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return omni.build(tmp_path_factory.mktemp("model") / "omni")


@pytest.fixture(scope="module")
def costs(checkpoint, tmp_path_factory):
    """By its kind, what each step of a stage without a budget costs."""

    @cache
    def run(kind):
        stage = Stage(kind, checkpoint, tmp_path_factory.mktemp(kind), Interruption(), every=STEPS + 1)
        found, close = [], stage.module.costs.took
        stage.module.costs.took = lambda ranks: [close(ranks), found.append(stage.module.costs.step.spent("flops"))][0]
        stage.outcome()
        return found

    return run


def of_flops(costs, steps, more=0.0):
    """A budget that ends a stage after some steps, or so much of the next step later."""
    limit = BEFORE + sum(costs[:steps]) + more * costs[steps - 1]
    return StageBudget(stage="stage", measure="flops", ends_at=float(limit), before=BEFORE)


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo", "ppo"])
def test_a_budget_of_all_its_steps_changes_nothing(checkpoint, tmp_path, kind):
    """Also with schedules that fall, and phases."""
    budget = StageBudget(stage="stage", measure="steps", ends_at=float(STEPS + 7), before=7)
    plain = Stage(kind, checkpoint, tmp_path / "plain", Interruption(), schedule=FALLS).outcome()
    assert_equal(
        Stage(kind, checkpoint, tmp_path / "budget", Interruption(), schedule=FALLS, budget=budget).outcome(), plain
    )
    assert logged(tmp_path / "budget") == logged(tmp_path / "plain")
    longer = Stage(
        kind, checkpoint, tmp_path / "longer", Interruption(), schedule=FALLS, budget=budget, steps=STEPS + 1
    ).outcome()
    with pytest.raises(AssertionError):  # the negative control: a schedule of another length
        assert_equal(longer, plain)


@pytest.mark.parametrize(("kind", "more"), [("sft", 0.0), ("sft", 0.4), ("sft", -0.4), ("grpo", 0.3)])
def test_a_stage_ends_at_the_step_whose_end_is_nearest_to_its_budget(checkpoint, costs, tmp_path, kind, more):
    stage = Stage(kind, checkpoint, tmp_path, Interruption(), budget=of_flops(costs(kind), 3, more))
    metrics, _ = stage.outcome()
    assert metrics["costs/steps"] == 3
    assert {3} == {step for step, key in logged(tmp_path) if key.startswith("stage/validation") and step == 3}


PLACES = [
    ("sft", "scoring", 2),
    ("sft", "report", 3),
    ("sft", "validation", 3),
    ("dpo", "scoring", 3),
    ("grpo", "reward", 3),
    ("grpo", "validation", 3),
    ("grpo", "report", 3),
    ("ppo", "scoring", 9),
]


@pytest.mark.parametrize("every", [1, STEPS + 1])
@pytest.mark.parametrize(("kind", "place", "at"), PLACES)
def test_a_killed_stage_ends_where_it_would_have_ended(checkpoint, costs, tmp_path, kind, place, at, every):
    # Checks of shapes draw from Python's generator, and a process that goes on looks at its costs once more: no noise.
    options = {"every": every, "schedule": FALLS, "budget": of_flops(costs(kind), 3), "reward": plain}
    whole = Stage(kind, checkpoint, tmp_path / "whole", Interruption(), **options).outcome()
    with Interruption() as interruption:
        first = Stage(kind, checkpoint, tmp_path / "cut", interruption, **options)
        kill_in(first, place, at)
        with pytest.raises(Interrupted):
            first.job.run()
    assert_equal(Stage(kind, checkpoint, tmp_path / "cut", Interruption(), **options).outcome(), whole)
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")


def test_a_stage_that_forgets_what_it_spent_ends_elsewhere(checkpoint, costs, tmp_path, monkeypatch):
    """The negative control."""
    options = {"budget": of_flops(costs("sft"), 3)}
    with Interruption() as interruption:
        first = Stage("sft", checkpoint, tmp_path, interruption, **options)
        kill_in(first, "scoring", 3)
        with pytest.raises(Interrupted):
            first.job.run()
    monkeypatch.setattr(CostMeter, "load_state_dict", lambda self, state: None)
    second = Stage("sft", checkpoint, tmp_path, Interruption(), **options)
    second.job.run()
    assert second.module._num_steps > 3


def test_a_budget_that_its_first_step_exceeds_twice_is_refused(checkpoint, costs, tmp_path):
    limit = BEFORE + 0.4 * costs("sft")[0]
    budget = StageBudget(stage="stage", measure="flops", ends_at=limit, before=BEFORE)
    for _ in range(2):  # also after the state of that step
        with pytest.raises(StageError, match=r"stages\.stage: one step takes .* flops, and of budget\.flops"):
            Stage("sft", checkpoint, tmp_path, Interruption(), budget=budget).job.run()


def test_seconds_end_a_stage_too(checkpoint, tmp_path):
    budget = StageBudget(stage="stage", measure="seconds", ends_at=10.0, before=9.9)
    stage = Stage("sft", checkpoint, tmp_path, Interruption(), budget=budget, steps=1000)
    found, took = [], stage.module.costs.took
    stage.module.costs.took = lambda ranks: [took(ranks), found.append(stage.module.costs.total.total_s)][0]
    metrics, _ = stage.outcome()
    seconds = [0.0, *found]
    assert metrics["costs/steps"] == len(found)
    assert all(2 * (0.1 - now) > now - before for before, now in pairwise(seconds[:-1]))
    assert 2 * (0.1 - seconds[-1]) <= seconds[-1] - seconds[-2]
