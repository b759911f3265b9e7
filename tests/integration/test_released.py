"""A finished stage gives its memory back before its evaluation and before the next stage."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from watched_run import Watch

from lightning_mmrl.app import evaluation, leader, stages
from lightning_mmrl.cli.main import main

CURRICULUM = (
    "+data.build.scale=0.02",
    "evaluation.num_resamples=50",
    "trainer.num_threads=1",
    "experiment=task_arithmetic",
    "model=tiny_qwen2",
    "trainer=cpu",
    "tracking=none",
    "data.validation=null",
    "evaluation.limit=2",
    "evaluation.max_new_tokens=2",
    "stages.cold_start.stop_when=null",
    "stages.cold_start.cooldown_steps=0",
    "stages.cold_start.num_steps=1",
    "stages.cold_start.data.batch_size=2",
    "stages.reason.num_steps=1",
    "stages.reason.data.batch_size=2",
    "stages.reason.algorithm.group_size=2",
    "stages.reason.sampling.max_new_tokens=2",
    "stages.reason.validate_every=null",
    "stages.cold_start.validate_every=null",
)
NOTHING_LEFT = ["evaluation: nothing", "stage: nothing", "evaluation: nothing", "stage: nothing", "evaluation: nothing"]
"""The base is evaluated, then each of two stages trains and is evaluated."""


def arguments(folder, *more):
    return ["train", *CURRICULUM, f"output_dir={folder}/runs", f"data.root={folder}/sums", *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs that share data and model."""
    return tmp_path_factory.mktemp("released")


def test_module_optimizer_and_policy_are_gone_before_evaluation(folder, monkeypatch):
    watch = Watch(monkeypatch.setattr)
    assert main(arguments(folder, "run_name=released")) == 0
    assert watch.notes == NOTHING_LEFT


def test_what_refers_to_itself_would_stay(folder, monkeypatch):
    """A negative control: without a collection, the cycles of a trainer keep all of it."""
    for module in (stages, evaluation):
        monkeypatch.setattr(module, "free_memory", lambda: None)
    watch = Watch(monkeypatch.setattr)
    gc.disable()
    try:
        assert main(arguments(folder, "run_name=uncollected")) == 0
    finally:
        gc.enable()
    assert "AdamW" in watch.notes[2]
    assert "SFTModule" in watch.notes[2]


@pytest.mark.slow
def test_a_job_that_somebody_keeps_would_stay(folder, monkeypatch):
    """A negative control: the job alone keeps the module."""
    kept, whole = [], leader.Leader.build_stage

    def build(self, *args):
        kept.append(whole(self, *args))
        return kept[-1]

    monkeypatch.setattr(leader.Leader, "build_stage", build)
    watch = Watch(monkeypatch.setattr)
    assert main(arguments(folder, "run_name=kept")) == 0
    assert "SFTModule" in watch.notes[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_shards_are_gone_on_every_rank(tmp_path):
    script = Path(__file__).parents[1] / "helpers" / "watched_run.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    more = ("trainer.devices=2", "trainer.strategy=fsdp2", "model.dtype=bfloat16")
    command += [str(tmp_path), *arguments(tmp_path, *more)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    notes = [(tmp_path / f"rank{rank}.txt").read_text().splitlines() for rank in range(2)]
    assert notes == [NOTHING_LEFT, NOTHING_LEFT]
