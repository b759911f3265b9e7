"""Two ranks that select what they train on: in step though one is short, exact after a signal, equal to one process."""

import exact_cases
import omni
import pytest
import rank_cases
import ranks
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1100)]

REFILLED = {"run": "exact", "kind": "grpo", "reward": "rare_alone"}
OPTIONS = {"every": exact_cases.STEPS + 1, "select": True}
SELECTED = {"stage": "grpo", "select": True}
STAGES = {
    "one-update": {**SELECTED, "resample": True},
    "two-updates": {**SELECTED, "minibatches": 2, "aggregation": "sequences", "kl": {"coefficient": 0.1}},
}
"""Groups are rejected and not replaced: one process and two ranks choose the same ones then."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(omni.build(tmp_path_factory.mktemp("model") / "omni"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def found(checkpoint, folder):
    """All cases, on two ranks that are started twice: the second time goes on with what the first one left."""
    plans, kill = [[], []], {"rank": 1, "place": "rollout", "at": 6}
    for strategy in rank_cases.STRATEGIES:
        common = {**REFILLED, "checkpoint": checkpoint, "strategy": strategy, "options": OPTIONS}
        places = {name: str(folder / f"{name}-{strategy}") for name in ("whole", "cut")}
        plans[0].append({"name": f"whole-{strategy}", "folder": places["whole"], **common})
        plans[0].append({"name": f"cut-{strategy}", "folder": places["cut"], "kill": kill, **common})
        plans[1].append({"name": f"again-{strategy}", "folder": places["cut"], **common})
    cases = [{"name": name, "checkpoint": checkpoint, **case} for name, case in STAGES.items()]
    plans[1] += rank_cases.on_strategies(cases)
    first = ranks.launch(plans[0], folder / "1", timeout_s=500)
    return first | ranks.launch(plans[1], folder / "2", timeout_s=500)


@pytest.mark.parametrize("strategy", rank_cases.STRATEGIES)
def test_ranks_stay_in_step_though_one_of_them_is_short(found, folder, strategy):
    """At the cap one rank trains on its prompt and the other one on none; both have the same weights afterwards."""
    logged = exact_cases.logged(folder / f"whole-{strategy}")
    steps = range(1, exact_cases.STEPS + 1)
    filled = [logged[step, "stage/rollout/batch_filled"] for step in steps]
    samplings = [logged[step, "stage/rollout/samplings"] for step in steps]
    assert 0.5 in filled
    assert 1.0 in filled[1:]
    assert {2.0, 3.0} & set(samplings)
    first, second = (rank["weights"] for rank in found[f"whole-{strategy}"])
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("strategy", rank_cases.STRATEGIES)
def test_a_signal_to_one_rank_within_a_refill_leaves_no_trace(found, folder, strategy):
    for cut in found[f"cut-{strategy}"]:
        assert cut["interrupted"] == "SIGTERM"
    for again, whole in zip(found[f"again-{strategy}"], found[f"whole-{strategy}"], strict=True):
        assert again["said"][0].startswith("continuing after step")
        exact_cases.assert_equal((again["metrics"], again["weights"]), (whole["metrics"], whole["weights"]))
    assert exact_cases.logged(folder / f"cut-{strategy}") == exact_cases.logged(folder / f"whole-{strategy}")


@pytest.mark.parametrize("strategy", rank_cases.STRATEGIES)
@pytest.mark.parametrize("name", STAGES)
def test_two_ranks_that_reject_groups_train_as_one_process(found, checkpoint, tmp_path, name, strategy):
    """One rank of an iteration has none left; also draws of all ranks; control: what is left out would have counted."""
    expected = rank_cases.run_stage({"checkpoint": checkpoint, **STAGES[name]}, tmp_path / "one")
    for rank in found[f"{name}-{strategy}"]:
        for step, wanted in zip(rank["steps"], expected["steps"], strict=True):
            assert step == pytest.approx(wanted, rel=1e-9, abs=1e-12)
        assert max(rank_cases.errors(rank["weights"], expected["weights"]).values()) < 1e-9
    assert min(step["rollout/batch_filled"] for step in expected["steps"]) == 0.5
    every = rank_cases.run_stage(
        {"checkpoint": checkpoint, **STAGES[name], "select": False, "resample": False}, tmp_path / "every"
    )
    assert max(rank_cases.errors(every["weights"], expected["weights"]).values()) > 1e-6
