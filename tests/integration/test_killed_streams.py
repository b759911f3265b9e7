"""SFT on clips of which one in ten is damaged, read while it trains, and killed within each of two passes."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import kill_places
import pytest
from damaged_set import write_damaged_set
from kill_curricula import damaged_clips
from kill_verdicts import decisions, differences

from lightning_mmrl.cli.main import main

pytestmark = pytest.mark.slow

NUM, STEPS = 20, 10
"""Clips, of which 18 are whole, and batches of four: the first pass ends within the fifth batch."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with clips."""
    folder = tmp_path_factory.mktemp("streams")
    assert write_damaged_set(folder / "clips", NUM) == ("clip005", "clip015")
    return folder


def arguments(folder, name):
    """A run without what other runs have read."""
    places = [
        f"data.root={folder / 'clips'}",
        f"output_dir={folder}",
        f"data.media.cache_dir={folder / name / 'cache'}",
    ]
    small = ["trainer.num_threads=1", "evaluation.limit=2", "evaluation.num_resamples=20", "tracking=none"]
    run = ["order=[cold_start]", f"run_name={name}", "state.every_n_steps=1", f"stages.cold_start.num_steps={STEPS}"]
    return ["train", *damaged_clips(), *places, *small, *run]


def killed(folder, name, batch):
    """Trains until the process kills itself at the end of a batch; its exit code."""
    send = ["--send", f"SIGKILL:batch:{batch}:{folder / name}"]
    command = [sys.executable, kill_places.__file__, *send, "--", *arguments(folder, name)]
    return subprocess.run(command, check=False, capture_output=True, timeout=600).returncode


@pytest.fixture(scope="module")
def alone(workplace):
    """The run that was left alone."""
    assert main(arguments(workplace, "alone")) == 0
    return workplace / "alone"


def test_a_run_killed_within_passes_has_the_batches_exclusions_and_weights_of_one_left_alone(alone, workplace, capsys):
    run = workplace / "killed"
    assert killed(workplace, "killed", 3) == -signal.SIGKILL
    first = {name for (manifest, name), why in decisions(run).items() if manifest == "train.jsonl"}
    assert len(first) < NUM  # within the first pass
    assert killed(workplace, "killed", 4) == -signal.SIGKILL
    capsys.readouterr()
    assert main(arguments(workplace, "killed")) == 0
    assert "continuing after step" in capsys.readouterr().err
    assert differences(alone, run) == []
    left_out = {name for (_, name), why in decisions(run).items() if why is not None}
    used = {name for (manifest, name), why in decisions(run).items() if why is None and manifest == "train.jsonl"}
    assert left_out == {"clip005", "clip015"}
    assert used == {f"clip{number:03d}" for number in range(NUM)} - left_out


def test_one_more_damaged_clip_is_another_run(alone, workplace, tmp_path):
    """The negative control."""
    shutil.copytree(workplace / "clips", tmp_path / "clips")
    (tmp_path / "clips" / "media" / "007.mp4").write_bytes(b"nothing")
    assert main(arguments(tmp_path, "other")) == 0
    assert differences(alone, Path(tmp_path) / "other") == [
        "metrics of 00-cold_start",
        "artifacts of 00-cold_start",
        "samples left out",
    ]
