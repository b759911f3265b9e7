"""The part of a budget that finished stages leave to the next one."""

import pytest

from lightning_mmrl.app.budget import stage_budget
from lightning_mmrl.config.compose import compose
from lightning_mmrl.curriculum.manifest import FinishedStage, Manifest
from lightning_mmrl.errors import StageError
from lightning_mmrl.types.costs import RankCosts, StageBudget, StageCosts
from lightning_mmrl.types.records import HANDOFF, Artifact, StageResult


def finished(name, steps, operations=None):
    """A trained stage; without operations, one of an earlier version, which measured no costs."""
    ranks = (RankCosts(operations={"training": operations or 0}),)
    result = StageResult(
        name=name,
        artifacts={HANDOFF: Artifact(path="handoff", digest="0")},
        inputs={},
        metrics={},
        seconds={},
        num_steps=steps,
        costs=None if operations is None else StageCosts(num_steps=steps, ranks=ranks),
    )
    return FinishedStage(digest="0", content={}, result=result, training_metrics={}, evaluation=None)


def left(folder, budget, *stages):
    """The budget of the last stage of three, after some finished ones."""
    Manifest(stages={stage.result.name: stage for stage in stages}).write(folder)
    config = compose(["experiment=quickstart", f"budget={{{budget}}}"])
    return stage_budget(config, "reason", folder / "stages" / "02-reason")


def test_all_finished_stages_that_count_take_part_of_it(tmp_path):
    both = finished("pretrain", 100, 7), finished("cold_start", 60, 30)
    of_steps = StageBudget(stage="reason", measure="steps", ends_at=450, before=160)
    assert left(tmp_path, "steps: 450", *both) == of_steps
    assert left(tmp_path, "flops: 450, apart: [pretrain]", *both).before == 30


def test_a_stage_before_that_is_not_finished_is_refused_and_not_taken_as_free(tmp_path):
    """As with --only-stage, if the stage starts from the base model."""
    with pytest.raises(StageError) as caught:
        left(tmp_path, "steps: 450", finished("pretrain", 100))
    assert str(caught.value) == (
        "stages.reason ends by what stage cold_start took of budget.steps too, and cold_start is not finished; run "
        "cold_start first, or name it in budget.apart"
    )
    assert left(tmp_path, "steps: 450, apart: [cold_start]", finished("pretrain", 100)).before == 100


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("flops: 450", "the costs of stage pretrain are not known, since an earlier version ran it"),
        ("steps: 170, apart: [cold_start]", None),
    ],
)
def test_costs_of_an_earlier_version_are_refused_unless_the_steps_count(tmp_path, budget, message):
    stages = finished("pretrain", 100), finished("cold_start", 60, 30)
    if message is None:
        assert left(tmp_path, budget, *stages).before == 100
        return
    with pytest.raises(StageError, match=message):
        left(tmp_path, budget, *stages)


def test_a_budget_that_is_spent_is_refused(tmp_path):
    with pytest.raises(StageError, match="may go up to 9 flops, and the stages before it took 37; raise"):
        left(tmp_path, "flops: 9", finished("pretrain", 100, 7), finished("cold_start", 60, 30))
