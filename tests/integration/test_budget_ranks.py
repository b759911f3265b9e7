"""Two ranks end a stage at the step where one process does, since they count the same tokens."""

import exact_cases
import omni
import pytest
import ranks
import torch

from lightning_mmrl.training.interruption import Interruption
from lightning_mmrl.types.costs import StageBudget

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KINDS = ("sft", "rloo")
STEPS = 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(omni.build(tmp_path_factory.mktemp("model") / "omni"))


def alone(kind, checkpoint, folder, **options):
    return exact_cases.Stage(
        kind, checkpoint, folder, Interruption(), reward=exact_cases.plain, dtype=torch.float64, **options
    )


def costs_of(stage):
    """What each step of a stage cost, once it has run."""
    found, took = [], stage.module.costs.took
    stage.module.costs.took = lambda each: [took(each), found.append(stage.module.costs.step.spent("flops"))][0]
    stage.outcome()
    return found


@pytest.fixture(scope="module")
def found(checkpoint, tmp_path_factory):
    """By its kind, what one process and two ranks ended with; the second time with nothing but a kill of one rank."""
    folder, single, plan, again = tmp_path_factory.mktemp("stages"), {}, [], []
    for kind in KINDS:
        limit = float(sum(costs_of(alone(kind, checkpoint, folder / f"{kind}-costs"))[:STEPS]))
        budget = {"measure": "flops", "ends_at": limit}
        single[kind] = alone(kind, checkpoint, folder / kind, budget=StageBudget(stage="stage", **budget)).outcome()
        plain = {"run": "exact", "kind": kind, "strategy": "ddp", "checkpoint": checkpoint, "dtype": "float64"}
        plain |= {"reward": "plain", "options": {"budget": budget}, "folder": str(folder / f"{kind}-ranks")}
        kill = {"rank": 1, "place": "report", "at": 3}
        plan.append({"name": kind, **plain, "folder": str(folder / f"{kind}-whole")})
        plan.append({"name": f"{kind}-killed", **plain, "kill": kill})
        again.append({"name": f"{kind}-again", **plain})
    results = ranks.launch(plan, folder / "1", timeout_s=300)
    return single, results | ranks.launch(again, folder / "2", timeout_s=300)


@pytest.mark.parametrize("kind", KINDS)
def test_all_ranks_end_where_one_process_does(found, kind):
    single, results = found
    assert abs(single[kind][0]["costs/steps"] - STEPS) <= 1  # its learning rates go by what is spent, not by steps
    for rank in results[kind]:
        for name in ("costs/steps", "costs/prompt", "costs/completion", "costs/generated"):
            assert rank["metrics"][name] == single[kind][0][name], name
        for name, weight in rank["weights"].items():
            assert torch.allclose(weight, single[kind][1][name], rtol=0, atol=1e-9), name  # sums in another order


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_that_were_killed_end_at_the_same_step(found, kind):
    _, results = found
    for killed, whole, later in zip(*(results[f"{kind}{name}"] for name in ("-killed", "", "-again")), strict=True):
        assert killed["interrupted"] == "SIGTERM"
        exact_cases.assert_equal((later["metrics"], later["weights"]), (whole["metrics"], whole["weights"]))
