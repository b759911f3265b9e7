"""A disk that refuses at one place after the other: one sentence each time, and the same command goes on exactly.

`tools/campaigns/disk_campaign.py` has all places on disks that are really full or read-only.
"""

from dataclasses import replace

import disk_cases
import pytest
from disk_cases import DISK, HERE, PLACES, RL, SFT

from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum.handoff import check_handoff
from lightning_mmrl.training.state_store import StateStore

pytestmark = pytest.mark.slow

CHAIN = [
    "run lock",
    "run manifest, at the start",
    "resolved configuration",
    "attempt",
    "exclusions",
    "first state",
    "handoff",
    "run manifest, after a stage",
    "exclusions of a later set",
    "predictions",
    "rollout table, and all else",
    "state",
    "manifest of a state",
    "last state",
    "processor of a handoff",
    "weights of a handoff",
    "seal of a handoff",
    "handoff taking its place",
    "confusion figure",
    "evaluation",
    "comparison",
]
"""In an order in which each is reached by the command that goes on after the one before."""

CHANGED = {
    "exclusions of a later set": {"nth": 1},  # the first set is decided by then
    "comparison": {"nth": 1},  # all but the last evaluation is done by then
    "resolved configuration": {"path": f"{HERE}config.yaml*"},
}


@pytest.fixture(scope="module")
def trap():
    return disk_cases.Trap()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that is left alone, with data, base model and cache for the others."""
    work = tmp_path_factory.mktemp("disks")
    assert main(disk_cases.commands(work, "whole")["train"]) == 0
    return work, disk_cases.outcome(work / "out" / "whole")


@pytest.mark.parametrize("first", [0, 1], ids=["full first", "read-only first"])
def test_the_same_command_goes_on_exactly_wherever_the_disk_refused(whole, trap, capsys, first):
    work, expected = whole
    name = f"run{first}"
    command, run = disk_cases.commands(work, name)["train"], work / "out" / name
    for number, title in enumerate(CHAIN):
        place = replace(PLACES[title], **CHANGED.get(title, {}))
        place = replace(place, path=place.path.replace(HERE, f"out/{name}/"))
        code = list(DISK.values())[(number + first) % 2]
        before = StateStore(run / RL.removeprefix(HERE) / "state").newest_step() or 0
        trap.set(place, work, lambda path, code=code: trap.refuse([f"{run}*"], code))
        capsys.readouterr()
        assert main(command) == 2, title
        trap.clear()
        said = capsys.readouterr().err
        assert trap.sprung, title
        assert "Traceback" not in said, title
        sentence = [line for line in said.splitlines() if line.startswith("mmrl train: ")]
        assert any("the same command continues" in line for line in sentence), (title, said)
        for handoff in run.glob("stages/*/handoff"):
            check_handoff(handoff)
        states = StateStore(run / RL.removeprefix(HERE) / "state")
        assert (states.newest_step() or 0) >= before or list(run.glob("stages/01-*/handoff")), title
    assert main(command) == 0
    assert disk_cases.differences(disk_cases.outcome(run), expected) == []
    assert disk_cases.left_over(run) == []


def test_training_goes_on_without_what_it_can_do_without(whole, trap, capsys, caplog):
    work, expected = whole
    run = work / "out" / "poor"
    sft, rl = (stage.replace(HERE, f"{run}/") for stage in (SFT, RL))
    dispensable = [f"{rl}metrics.jsonl", f"{rl}rollouts*", f"{sft}csv*", f"{sft}tensorboard*", f"{run}/report.html*"]
    trap.refuse(dispensable, DISK["full"])
    command = [*disk_cases.commands(work, "poor")["train"], "tracking.loggers=[csv]"]
    assert main(command) == 0
    trap.clear()
    said = capsys.readouterr()
    missing = [line for line in said.err.splitlines() if "missing in" in line]
    assert " ".join(said.err.split()).count("warning: report.html is not up to date (DiskError: ") == 4
    assert not (run / "report.html").exists()
    assert len(missing) == 3
    assert any(line.startswith("mmrl train: 4 lines of metrics.jsonl are missing in ") for line in missing)
    assert sum("cannot be written" in message for message in caplog.messages) == 3
    found = disk_cases.outcome(run)
    assert disk_cases.differences(found, expected, gaps=True) == []
    assert found["metrics of reason"] == {}
