"""What a finished stage took of a budget, by its costs and by what is known without them."""

import pytest

from lightning_mmrl.types.costs import RankCosts, StageCosts
from lightning_mmrl.types.records import HANDOFF, Artifact, StageResult

COSTS = StageCosts(num_steps=5, ranks=(RankCosts(seconds={"a": 2.0}, operations={"training": 60, "sampling": 40}),))
UNKNOWN = StageCosts(num_steps=5, ranks=(RankCosts(seconds={"a": 2.0}),))


@pytest.mark.parametrize(
    ("trained", "costs", "num_steps", "spent"),
    [
        (True, COSTS, 5, (100, 5, 2.0)),
        (True, UNKNOWN, 5, (None, 5, 2.0)),
        (True, None, 5, (None, 5, 9.0)),
        (True, None, 0, (0, 0, 9.0)),
        (False, COSTS, 5, (100, 0, 2.0)),
        (False, None, 1, (0, 0, 9.0)),
    ],
)
def test_what_a_stage_took(trained, costs, num_steps, spent):
    artifacts = {HANDOFF if trained else "kept": Artifact(path="p", digest="d")}
    seconds = {"train" if trained else "run": 9.0, "evaluate": 100.0}
    result = StageResult(
        name="x", artifacts=artifacts, inputs={}, metrics={}, seconds=seconds, costs=costs, num_steps=num_steps
    )
    assert tuple(result.spent(measure) for measure in ("flops", "steps", "seconds")) == spent
