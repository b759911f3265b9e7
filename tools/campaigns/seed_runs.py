"""Runs of one experiment for several seeds: trains them, reads their judged answers, and combines gains over seeds."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_mmrl.evaluation.intervals import ClusterBootstrap, Interval
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.seeds import PairedT, paired_t
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.evaluation.tasks.multiple_choice import MultipleChoice
from lightning_mmrl.evaluation.tasks.task import Task
from lightning_mmrl.rewards.choice_answer import ChoiceAnswer

BASE = "base"
"""Name of the model before the first stage, in the place of a stage's."""


def train(experiment: str, seed: int, folder: Path, overrides: Sequence[str] = ()) -> None:
    """Trains a run in `folder`: a stopped run continues, and a finished one only reports.

    Wall time and processor time of each process that went on with the run are appended to `<folder>.usage.jsonl`.

    Raises:
        SystemExit: The run ended with another exit code than 0.
    """
    where = [f"experiment={experiment}", f"output_dir={folder.parent}", f"run_name={folder.name}", f"seed={seed}"]
    manifest, started = _content(folder / "manifest.json"), time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "lightning_mmrl.cli.main", "train", *where, *overrides]
    code = subprocess.run(command, check=False).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if _content(folder / "manifest.json") != manifest:
        cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        line = {"seconds": round(time.monotonic() - started, 1), "cpu_seconds": round(cpu_seconds, 1)}
        with _usage_file(folder).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    if code:
        name = Path(sys.argv[0]).stem
        sys.exit(f"{name}: {folder.name} ended with exit code {code}; run the same command to continue")


def usage(folder: Path) -> dict[str, float]:
    """Wall time and processor time of a run over all its processes, in seconds; empty if none is known."""
    lines = _content(_usage_file(folder)).splitlines()
    each = [json.loads(line) for line in lines]
    return {key: sum(line[key] for line in each) for key in ("seconds", "cpu_seconds")} if each else {}


def evaluated(folder: Path, stage: str) -> dict[str, Path]:
    """The files of judged answers of a stage, by evaluation set; empty for a stage without an evaluation."""
    pattern = BASE if stage == BASE else f"stages/*-{stage}"
    return {file.stem: file for file in sorted(folder.glob(f"{pattern}/evaluation/*.jsonl"))}


def pooled(folders: Mapping[int, Path], stage: str, name: str = "test") -> list[Judgement]:
    """The judged answers of a stage of all runs; the seed joins a question's id, which is its speaker."""
    found = []
    for seed, folder in folders.items():
        lines = evaluated(folder, stage)[name].read_text(encoding="utf-8").splitlines()
        judged = [Judgement.from_json(line) for line in lines]
        found += [replace(each, sample_id=f"{seed}/{each.sample_id}", speaker=each.sample_id) for each in judged]
    return found


def pooled_gain(own: Sequence[Judgement], before: Sequence[Judgement], task: Task) -> Interval:
    """Headline of a stage minus that of another, on the same questions and seeds; questions are resampled."""
    return ClusterBootstrap().paired_difference(own, before, task)


def gain_over_seeds(
    own: Sequence[Judgement], before: Sequence[Judgement], seeds: Sequence[int], task: Task
) -> PairedT | None:
    """Headline of a stage minus that of another, a fraction, as a paired t over seeds; None for a single seed."""
    values = [percentages(judged, seeds, task, task.headline) for judged in (own, before)]
    return paired_t([(a - b) / 100 for a, b in zip(*values, strict=True)]) if len(seeds) > 1 else None


def percentages(judged: Sequence[Judgement], seeds: Iterable[int], task: Task, metric: str) -> list[float]:
    """A metric of the answers of each seed, in percent."""
    parts = ([each for each in judged if each.sample_id.startswith(f"{seed}/")] for seed in seeds)
    return [100 * task.metrics(part)[metric] for part in parts]


def gain_line(own: str, before: str, gain: Mapping[str, Any], seeds: Mapping[str, Any] | None) -> str:
    """One line about a gain in points: its interval over questions, and the one of the paired t over seeds."""
    line = f"- {own} over {before}: {100 * gain['estimate']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
    if seeds is None:
        return line
    return f"{line}, over seeds [{100 * seeds['low']:+.1f}, {100 * seeds['high']:+.1f}] (p {seeds['p_value']:.3f})"


def task_of(judged: Sequence[Judgement]) -> Task:
    """The task whose figures the answers have: accuracy where they are scored, else UAR over their labels."""
    if all("accuracy" in each.scores for each in judged):
        return MultipleChoice(reader=ChoiceAnswer(choices="ABCDEFGH"))
    labels = {each.truth for each in judged} | {each.predicted for each in judged if each.predicted is not None}
    return ClosedLabels(labels=sorted(labels))


def _usage_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.usage.jsonl")


def _content(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""
