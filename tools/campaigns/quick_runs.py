"""Short runs of `mmrl train` for campaigns: a base that answers well enough for RL, and processes that train."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def shared_arguments(work: Path, data_root: Path) -> list[str]:
    """Where runs of a campaign go, on one thread each."""
    places = [f"output_dir={work}", f"data.root={data_root}", f"data.media.cache_dir={work / 'cache'}"]
    return [*places, "trainer.num_threads=1"]


def trained_base(work: Path, data_root: Path) -> Path:
    """The quickstart's model after its cold start, trained once (three minutes)."""
    handoff = work / "base" / "stages" / "01-cold_start" / "handoff"
    if not handoff.is_dir():
        arguments = ["experiment=quickstart", "order=[pretrain,cold_start]", "run_name=base", "tracking=none"]
        arguments += ["stages.cold_start.validate_every=null", "evaluation.limit=16", "evaluation.ablations=[]"]
        log = work / "base.log"
        finish(start_training([*arguments, *shared_arguments(work, data_root)], log), log)
    return handoff


def start_training(
    arguments: Sequence[str], log: Path, *, through: Sequence[str] = ("-m", "lightning_mmrl.cli.main")
) -> "subprocess.Popen[bytes]":
    """A process that runs `mmrl train`, or the Python command `through` that does, and appends to a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        command = [sys.executable, *through, "train", *arguments]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)


def finish(process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Waits for the end of a run that must succeed."""
    if process.wait(3600) != 0:
        raise SystemExit(f"a run ended with {process.returncode}; see {log}")
