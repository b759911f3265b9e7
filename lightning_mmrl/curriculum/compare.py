"""Compares stages: metrics with intervals, and paired differences on the same samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_mmrl.evaluation.breakdown import PARTS
from lightning_mmrl.evaluation.intervals import ClusterBootstrap, Interval
from lightning_mmrl.evaluation.records import COUNTED_WRONG, Judgement
from lightning_mmrl.evaluation.speakers import SpeakerSpread
from lightning_mmrl.evaluation.tasks.task import Task
from lightning_mmrl.files import read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class SetResult:
    """One stage on one evaluation set (`test`, or `test-silent` for an ablation); fractions, not percent.

    `task` says what was measured, and `intervals` has the intervals of its metrics. `num_left_out` samples of the set
    could not be used. If there are any, `counted_wrong` has the intervals that count each unused sample as a wrong
    answer. `speakers` has the headline by speaker, if they are known. `thinking` compares answers that were forced
    without a thought with the set's own (`evaluation.thinking.thinking_gain`). `breakdown` is as `evaluation.breakdown`
    makes it, empty for a result of an older version.
    """

    stage: str
    name: str
    num_samples: int
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    task: Task
    num_left_out: int = 0
    counted_wrong: dict[str, Interval] = field(default_factory=dict)
    speakers: SpeakerSpread | None = None
    thinking: dict[str, Any] | None = None
    breakdown: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Plain values for a file; intervals stand under the names of their metrics."""
        return {
            "stage": self.stage,
            "name": self.name,
            "num_samples": self.num_samples,
            "metrics": dict(self.metrics),
            **{name: asdict(interval) for name, interval in self.intervals.items()},
            "num_left_out": self.num_left_out,
            "counted_wrong": {name: asdict(interval) for name, interval in self.counted_wrong.items()},
            **({} if self.speakers is None else {"speakers": self.speakers.plain()}),
            **({} if self.thinking is None else {"thinking": self.thinking}),
            **self.task.described(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A stage's headline metric minus the same metric of the stage it started from, on the same samples of one set.

    `num_unpaired` samples do not count, because only one of the two stages could use them.
    """

    stage: str
    over: str
    name: str
    difference: Interval
    task: Task
    num_unpaired: int = 0

    def plain(self) -> dict[str, Any]:
        """Plain values for a file."""
        found = {"stage": self.stage, "over": self.over, "name": self.name, "difference": asdict(self.difference)}
        unpaired = {"num_unpaired": self.num_unpaired} if self.num_unpaired else {}
        return found | unpaired | self.task.described()


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All stages of a run side by side."""

    results: Sequence[SetResult]
    gains: Sequence[Gain]

    def plain(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {"results": [each.plain() for each in self.results], "gains": [each.plain() for each in self.gains]}


def compare_stages(
    folders: Mapping[str, Path],
    sources: Mapping[str, str | None],
    task_of: Callable[[str], Task],
    bootstrap: ClusterBootstrap,
) -> Comparison:
    """Reads the evaluations of stages and compares each with the stage it started from.

    Args:
        folders: Stage name to its `evaluation` folder, in order.
        sources: Stage name to the stage it started from, None for the base model.
        task_of: Gives the task of a set, or of an ablation of one.
        bootstrap: Estimator of the paired intervals.

    Raises:
        StageError: A stage has no evaluation.
    """
    summaries: dict[str, dict[str, Any]] = {}
    for stage, folder in folders.items():
        remedy = f"it holds the evaluation of stage {stage}: restore the file, or set a new run_name"
        summaries[stage] = read_json(folder / "evaluation.json", remedy)
    results = [
        _result(stage, name, entry, task_of(name))
        for stage, found in summaries.items()
        for name, entry in found.items()
    ]
    gains: list[Gain] = []
    for stage, folder in folders.items():
        over = sources.get(stage)
        if over is None or over not in folders:
            continue
        for name in summaries[stage]:
            if name in summaries[over] and task_of(name).has_truth:
                files = [place / f"{name}.jsonl" for place in (folder, folders[over])]
                lines = [file.read_text(encoding="utf-8").splitlines() for file in files]
                own, before = ([Judgement.from_json(line) for line in each] for each in lines)
                # The two may have left out different samples, for example because their prompts differ in length.
                ids = {each.sample_id for each in own} ^ {each.sample_id for each in before}
                own = [each for each in own if each.sample_id not in ids]
                before = [each for each in before if each.sample_id not in ids]
                if not own:
                    continue
                difference = bootstrap.paired_difference(own, before, task_of(name))
                task, unpaired = task_of(name), len(ids)
                gains.append(
                    Gain(stage=stage, over=over, name=name, difference=difference, task=task, num_unpaired=unpaired)
                )
    return Comparison(results=results, gains=gains)


def _result(stage: str, name: str, entry: dict[str, Any], task: Task) -> SetResult:
    found = {key: Interval(**interval) for key, interval in entry["intervals"].items()}
    wrong = {key: interval for key, interval in found.items() if key.endswith(COUNTED_WRONG)}
    return SetResult(
        stage=stage,
        name=name,
        num_samples=entry["num_samples"],
        metrics=entry["metrics"],
        intervals={key: interval for key, interval in found.items() if key not in wrong},
        task=task,
        num_left_out=len(entry.get("left_out", ())),
        counted_wrong={key.removesuffix(COUNTED_WRONG): interval for key, interval in wrong.items()},
        speakers=SpeakerSpread.from_plain(entry["speakers"]) if "speakers" in entry else None,
        thinking=entry.get("thinking"),
        breakdown={key: entry[key] for key in PARTS if key in entry},
    )
