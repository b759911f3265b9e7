"""Runs `mmrl` in a process that sends itself a signal in a place: `--send SIGNAL:PLACE:NUMBER:STEM -- train ...`.

The signal comes when the process is in the place for the NUMBER-th time. `STEM.sent` then holds the time, and
`STEM.ended` appears when the process ends by itself.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIGNALLED = {"step": 3, "rollout": 3, "reward": 3, "evaluation": 3, "save": 3, "border": 2}
"""Places of signals in a run that trains, each with the time at which the signal comes."""
KILLED = {"batch": 40, "sampling": 16, "part": 16, "rename": 16, "export": 5, "seal": 5, "border": 26}
"""Places of kills in a run with a stage that samples, each with the number of times that a whole run is there:
optimizer steps, batches that are sampled, before a part and between its writing and its name, before and within the
sealing of an artifact, and before each change of the manifest."""
ROUTED = {"consult": 2, "traces": 1, "ledger": 9, "judge": 3}
"""Further places of a run that routes prompts: before an expert is asked, within the traces, before a line is written
of what an endpoint was asked or answered, and before answers are judged."""


def main(send: str, arguments: Sequence[str]) -> int:
    """Runs the command, with the signal, and returns its exit code."""
    from lightning_mmrl.cli.main import main as mmrl

    signame, place, number, stem = send.split(":")
    owner, name = _place(place)
    whole, count = getattr(owner, name), [0]

    def call(*args: Any, **kwargs: Any) -> Any:
        if place != "rename" or Path(args[1]).name.startswith("part-"):
            count[0] += 1
        if count[0] == int(number):
            Path(f"{stem}.sent").write_text(repr(time.time()))
            os.kill(os.getpid(), getattr(signal, signame))
        return whole(*args, **kwargs)

    setattr(owner, name, call)
    try:
        return mmrl(list(arguments))
    finally:
        Path(f"{stem}.ended").touch()


def _place(place: str) -> tuple[Any, str]:
    """The owner and the name of the function that a process calls in a place."""
    from lightning_mmrl import files
    from lightning_mmrl.app.experts import Consultation, Judge
    from lightning_mmrl.curriculum import artifacts, orchestrator
    from lightning_mmrl.curriculum.experts.ledger import Ledger
    from lightning_mmrl.curriculum.experts.traces import Traces
    from lightning_mmrl.curriculum.manifest import Manifest
    from lightning_mmrl.rewards.pool import InlineRewards
    from lightning_mmrl.rollout.hf import HFEngine
    from lightning_mmrl.stages import sample
    from lightning_mmrl.stages.evaluate import EvaluationModule
    from lightning_mmrl.stages.module import StageModule
    from lightning_mmrl.stages.policy_gradient import PolicyGradientModule
    from lightning_mmrl.training.state_store import StateStore

    return {
        "step": (PolicyGradientModule, "manual_backward"),
        "batch": (StageModule, "on_train_batch_end"),
        "rollout": (HFEngine, "_fill"),
        "reward": (InlineRewards, "score"),
        "evaluation": (EvaluationModule, "test_step"),
        "save": (StateStore, "begin"),
        "sampling": (sample, "score_rollout"),
        "part": (sample, "write_table"),
        "rename": (files.os, "replace"),
        "export": (orchestrator, "write_artifact"),
        "seal": (artifacts, "sync_tree"),
        "border": (Manifest, "write"),
        "consult": (Consultation, "consult"),
        "traces": (Traces, "ask"),
        "ledger": (Ledger, "_add"),
        "judge": (Judge, "scores"),
    }[place]


if __name__ == "__main__":
    sys.exit(main(sys.argv[sys.argv.index("--send") + 1], sys.argv[sys.argv.index("--") + 1 :]))
