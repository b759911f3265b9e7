"""A stage that selects what it trains on goes on, after an interruption anywhere, as if there had been none."""

import omni
import pytest
import torch
from exact_cases import STEPS, Stage, assert_equal, kill_in, logged, rare

from lightning_mmrl.training.interruption import Interrupted, Interruption
from lightning_mmrl.training.state_store import MANIFEST

pytestmark = pytest.mark.slow

# The type checks of tests draw from the generator that adds noise to the reward: other code may need another seed.
OPTIONS = {"select": True, "reward": rare, "seed": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return omni.build(tmp_path_factory.mktemp("model") / "omni")


@pytest.fixture(scope="module")
def undisturbed(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    outcome = Stage("grpo", checkpoint, folder, Interruption(), every=STEPS + 1, **OPTIONS).outcome()
    return outcome, logged(folder)


def of(metrics, name):
    return [metrics[step, f"stage/rollout/{name}"] for step in range(1, STEPS + 1)]


def test_the_stage_rejects_and_refills_up_to_its_cap(undisturbed):
    """Otherwise equality would say little."""
    samplings, kept, filled = (of(undisturbed[1], name) for name in ("samplings", "groups_kept", "batch_filled"))
    assert (samplings[0], kept[0]) == (1.0, 1.0), "the first iteration does not select"
    assert set(samplings[1:]) >= {2.0, 3.0}
    capped = [number == 3 for number in samplings]
    assert all(share == 1 or at_cap for share, at_cap in zip(filled, capped, strict=True)), "full below the cap"
    assert {share for share, number in zip(filled, samplings, strict=True) if number > 1} >= {1.0}, "rejected, refilled"
    assert all(share < 1 for share, number in zip(kept, samplings, strict=True) if number > 1)


@pytest.mark.parametrize(
    ("place", "at"), [("rollout", 4), ("rollout", 6), ("reward", 5), ("scoring", 7), ("report", 3), ("validation", 2)]
)
def test_an_interruption_within_a_refill_leaves_no_trace(checkpoint, undisturbed, tmp_path, place, at):
    with Interruption() as interruption:
        first = Stage("grpo", checkpoint, tmp_path, interruption, every=STEPS + 1, **OPTIONS)
        kill_in(first, place, at)
        with pytest.raises(Interrupted, match="SIGTERM"):
            first.job.run()
    second = Stage("grpo", checkpoint, tmp_path, Interruption(), every=STEPS + 1, **OPTIONS)
    outcome = second.outcome()
    assert second.said[0].startswith("continuing after step")
    assert_equal(outcome, undisturbed[0])
    assert logged(tmp_path) == undisturbed[1]


def test_the_number_of_refills_is_a_part_of_the_state(checkpoint, undisturbed, tmp_path):
    """The negative control: further prompts of the beginning lead elsewhere."""
    with Interruption() as interruption:
        first = Stage("grpo", checkpoint, tmp_path, interruption, every=STEPS + 1, **OPTIONS)
        kill_in(first, "report", 5)
        with pytest.raises(Interrupted):
            first.job.run()
    found = first.store.latest()
    state = torch.load(found.folder / "checkpoint", weights_only=True)
    assert state["Data"]["refills"] > 0
    state["Data"]["refills"] = 0
    torch.save(state, found.folder / "checkpoint")
    (folder := first.store.begin(found.step)).rmdir()
    found.folder.rename(folder)
    (folder / MANIFEST).unlink()
    first.store.commit(found.step, {})
    outcome = Stage("grpo", checkpoint, tmp_path, Interruption(), every=STEPS + 1, **OPTIONS).outcome()
    with pytest.raises(AssertionError):
        assert_equal(outcome, undisturbed[0])
