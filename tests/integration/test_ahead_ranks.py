"""Two ranks that sample ahead equal one process, go on exactly, and go on as one process and back."""

import exact_cases
import omni
import pytest
import ranks
import torch
from queued import InlineQueue

from lightning_mmrl.algorithms.corrections.importance import ImportanceCorrection
from lightning_mmrl.training.interruption import Interruption

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LAG = {"lag": 1, "queue": "InlineQueue"}
ALONE = {"every": exact_cases.STEPS + 1, **LAG}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(omni.build(tmp_path_factory.mktemp("model") / "omni"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def found(checkpoint, folder):
    """Undisturbed, in processes of their own, and stopped on one rank and continued."""

    def case(name, place, **more):
        common = {"run": "exact", "kind": "grpo", "strategy": "ddp", "checkpoint": checkpoint}
        plain = {"reward": "plain", "dtype": "float64", "options": ALONE}
        return {"name": name, "folder": str(folder / place), **common, **plain, **more}

    first = [
        case("undisturbed", "undisturbed"),
        case("processes", "processes", options={**ALONE, "queue": "in_process_of_its_own"}, watchdog_s=200),
        case("stopped", "stopped", kill={"rank": 1, "place": "rollout", "at": 4}),
        case("halves", "halves", kill={"rank": 0, "place": "report", "at": 3}),
    ]
    results = ranks.launch(first, folder / "1", timeout_s=400)
    results |= ranks.launch([case("continued", "stopped")], folder / "2", timeout_s=300)
    return results


def assert_same(first, second):
    exact_cases.assert_equal((first["metrics"], first["weights"]), (second["metrics"], second["weights"]))


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_has_an_engine_of_its_own_and_goes_on_exactly(found, rank):
    assert_same(found["processes"][rank], found["undisturbed"][rank])
    assert found["stopped"][rank]["interrupted"] == "SIGTERM"
    assert found["continued"][rank]["said"][0] == "continuing after step 3"
    assert_same(found["continued"][rank], found["undisturbed"][rank])


def test_one_process_goes_on_with_the_rollouts_of_two_ranks(checkpoint, found, folder):
    """As one process from the start, up to the rounding of sums."""
    options = {"every": exact_cases.STEPS + 1, "reward": exact_cases.plain, "dtype": torch.float64}
    options |= {"lag": 1, "queue": InlineQueue, "correction": ImportanceCorrection()}
    alone = exact_cases.Stage("grpo", checkpoint, folder / "alone", Interruption(), **options).outcome()
    second = exact_cases.Stage("grpo", checkpoint, folder / "halves", Interruption(), **options)
    metrics, weights = second.outcome()
    assert second.said[0].startswith("continuing after step")
    for name, value in alone[1].items():
        torch.testing.assert_close(weights[name], value, rtol=1e-9, atol=1e-11, msg=name)
    assert metrics["rollout/reward_mean"] == pytest.approx(alone[0]["rollout/reward_mean"])
    for name, value in found["undisturbed"][0]["weights"].items():
        torch.testing.assert_close(weights[name], value, rtol=1e-9, atol=1e-11, msg=name)
