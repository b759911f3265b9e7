"""`mmrl train` on two ranks: started by itself, one of them killed, continued, and equal to one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import SMALL

from lightning_mmrl.stages.evaluate import BOUND

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CURRICULUM = (
    *SMALL,
    "experiment=quickstart",
    "order=[cold_start,reason]",
    "model.dtype=float64",
    "data.validation_limit=4",
    "stages.cold_start.num_steps=4",
    "stages.cold_start.data.batch_size=4",
    "stages.cold_start.validate_every=2",
    "stages.reason.num_steps=6",
    "stages.reason.validate_every=3",
    "stages.reason.data.batch_size=2",
    "stages.reason.algorithm.group_size=2",
    "stages.reason.sampling.max_new_tokens=8",
    "evaluation.limit=4",
    "evaluation.ablations=[]",
    "evaluation.max_new_tokens=8",
    "state.every_n_steps=1",
)
STAGES = ("00-cold_start", "01-reason")


def start(workplace, name, *more):
    """The command, as a user types it."""
    arguments = [*CURRICULUM, f"output_dir={workplace}/runs", f"data.root={workplace}/clips", f"run_name={name}", *more]
    command = [sys.executable, "-m", "lightning_mmrl.cli.main", "train", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (workplace / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def finish(process, workplace, name):
    assert process.wait(240) == 0, (workplace / f"{name}.log").read_text()[-3000:]


def ranks_of(process):
    """The processes that the command started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return tmp_path_factory.mktemp("workplace")


@pytest.fixture(scope="module")
def alone(workplace):
    """The run of one process, which generates the clips."""
    finish(start(workplace, "alone"), workplace, "alone")
    return workplace / "runs" / "alone"


@pytest.fixture(scope="module")
def killed(alone, workplace):
    """A run on two ranks, how it ended when one was killed, and its log; the same command then continued it."""
    sharded = ("trainer.devices=2", "trainer.strategy=fsdp2")
    process = start(workplace, "two", *sharded)
    folder = workplace / "runs" / "two"
    try:
        until = time.monotonic() + 180
        while not list(folder.glob("stages/01-reason/state/step-*[0-9]")):
            assert process.poll() is None, (workplace / "two.log").read_text()[-3000:]
            assert time.monotonic() < until
            time.sleep(0.05)
        first, second = ranks_of(process)
        os.kill(second, signal.SIGKILL)
        code = process.wait(60)
    finally:
        process.kill()  # if it still runs, a check above failed
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    finish(start(workplace, "two", *sharded), workplace, "two")
    return folder, code, (workplace / "two.log").read_text()


def test_all_ranks_end_when_one_is_killed_and_the_command_says_so(killed):
    _, code, log = killed
    assert code == 128 + signal.SIGKILL
    # It notices by itself, or torchrun's signal to end comes first.
    gone = "mmrl train: rank 0 ends because another one is gone" in log
    assert gone or "mmrl train: interrupted by SIGTERM" in log


def test_the_same_command_continues_within_the_stage(killed):
    _, _, log = killed
    assert "stage 1 of 2 cold_start: already finished" in log
    assert "stage 2 of 2 reason: continuing after step" in log


@pytest.mark.parametrize("stage", STAGES)
def test_the_weights_and_metrics_are_those_of_one_process(alone, killed, stage):
    found, wanted = (
        load_file(folder / "stages" / stage / "handoff" / "model.safetensors") for folder in (killed[0], alone)
    )
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=name)
    assert metrics(killed[0] / "stages" / stage) == pytest.approx(metrics(alone / "stages" / stage), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_handed_over_and_evaluated_is_that_of_one_process(alone, killed, stage):
    """Files beside the weights, and predictions in the order of the manifest."""
    for part in ("handoff", "evaluation"):
        here, there = (folder / "stages" / stage / part for folder in (killed[0], alone))
        names = sorted(path.name for path in there.iterdir())
        assert sorted(path.name for path in here.iterdir()) == names
        for name in set(names) - {"model.safetensors", "mmrl.json", BOUND}:
            assert (here / name).read_bytes() == (there / name).read_bytes(), name
        if BOUND in names:
            ours, theirs = (json.loads((folder / BOUND).read_text()) for folder in (here, there))
            # It names the weights by their hash, which the order of sums decides.
            assert {**ours["common"], "checkpoint": None} == {**theirs["common"], "checkpoint": None}
            assert ours["sets"] == theirs["sets"]


def metrics(stage):
    """Each metric of each step; rank 0 logs it once."""
    found = {}
    for line in (stage / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for key, value in record["metrics"].items():
            assert (record["step"], key) not in found
            if "/time/" not in key:
                found[record["step"], key] = value
    return found
