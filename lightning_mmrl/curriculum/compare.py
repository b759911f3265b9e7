"""Compares stages: metrics with intervals, and paired differences on the same clips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_mmrl.evaluation.intervals import ClusterBootstrap, Interval
from lightning_mmrl.evaluation.records import COUNTED_WRONG, Prediction
from lightning_mmrl.files import read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class SetResult:
    """One stage on one evaluation set (`test`, or `test-silent` for an ablation); fractions, not percent.

    `num_left_out` samples of the set could not be used. If there are any, `counted_wrong` has the intervals of `war`
    and `uar` that count each unused sample as a wrong answer for its true class.
    """

    stage: str
    name: str
    num_samples: int
    metrics: dict[str, float]
    war: Interval
    uar: Interval
    num_left_out: int = 0
    counted_wrong: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """UAR of a stage minus UAR of the stage it started from, on the same samples of one set."""

    stage: str
    over: str
    name: str
    difference: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All stages of a run side by side."""

    results: Sequence[SetResult]
    gains: Sequence[Gain]


def compare_stages(
    folders: Mapping[str, Path], sources: Mapping[str, str | None], labels: Sequence[str], bootstrap: ClusterBootstrap
) -> Comparison:
    """Reads the evaluations of stages and compares each with the stage it started from.

    Args:
        folders: Stage name to its `evaluation` folder, in order.
        sources: Stage name to the stage it started from, None for the base model.
        labels: The closed label set.
        bootstrap: Estimator of the paired intervals.

    Raises:
        StageError: A stage has no evaluation.
    """
    summaries: dict[str, dict[str, Any]] = {}
    for stage, folder in folders.items():
        remedy = f"it holds the evaluation of stage {stage}: restore the file, or set a new run_name"
        summaries[stage] = read_json(folder / "evaluation.json", remedy)
    results = [_result(stage, name, entry) for stage, found in summaries.items() for name, entry in found.items()]
    gains: list[Gain] = []
    for stage, folder in folders.items():
        over = sources.get(stage)
        if over is None or over not in folders:
            continue
        for name in summaries[stage]:
            if name in summaries[over]:
                files = [place / f"{name}.jsonl" for place in (folder, folders[over])]
                lines = [file.read_text(encoding="utf-8").splitlines() for file in files]
                own, before = ([Prediction.from_json(line) for line in each] for each in lines)
                difference = bootstrap.paired_uar_difference(own, before, labels)
                gains.append(Gain(stage=stage, over=over, name=name, difference=difference))
    return Comparison(results=results, gains=gains)


def _result(stage: str, name: str, entry: dict[str, Any]) -> SetResult:
    return SetResult(
        stage=stage,
        name=name,
        num_samples=entry["num_samples"],
        metrics=entry["metrics"],
        war=Interval(**entry["intervals"]["war"]),
        uar=Interval(**entry["intervals"]["uar"]),
        num_left_out=len(entry.get("left_out", ())),
        counted_wrong={
            key.removesuffix(COUNTED_WRONG): Interval(**interval)
            for key, interval in entry["intervals"].items()
            if key.endswith(COUNTED_WRONG)
        },
    )
