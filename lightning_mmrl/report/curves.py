"""Learning curves of stages, from their `metrics.jsonl`, reduced to a bounded number of points."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_mmrl.report.markup import Html, folded, joined, number, rounded, table, tag
from lightning_mmrl.report.run_files import RunFiles, StageFiles, records_of

FILE = "metrics.jsonl"
MOST_POINTS = 200
"""Points of a curve; a longer one is shown as means of as many equal stretches of its values."""
MOST_METRICS = 120
"""Metrics of a stage; the rest are counted."""
FIRST = (
    "rollout/reward_mean",
    "train/loss",
    "validation/uar",
    "validation/accuracy",
    "rollout/length_mean",
    "train/entropy",
    "train/grad_norm",
    "rollout/groups_with_signal",
)
"""Metrics that are drawn at once, as far as a stage has them; the others are drawn when they are chosen."""
DRAWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One metric of one stage: steps in rising order, and values, which may be infinite or not a number."""

    steps: Sequence[int]
    values: Sequence[float]


def curves_of(stage: StageFiles, missing: list[str]) -> dict[str, Curve]:
    """Reads the curves of a stage; of two values at one step the later counts."""
    if stage.folder is None:
        return {}
    points: defaultdict[str, dict[int, float]] = defaultdict(dict)
    path = stage.folder / FILE
    try:
        for record in records_of(path, missing):
            for key, value in record["metrics"].items():
                points[str(key).removeprefix(f"{stage.name}/")][int(record["step"])] = float(value)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        missing.append(f"{path} is damaged ({type(error).__name__}); its curves are cut there.")
    ordered = {key: sorted(found.items()) for key, found in sorted(points.items())}
    return {
        key: Curve(steps=[step for step, _ in found], values=[value for _, value in found])
        for key, found in ordered.items()
    }


def reduced(curve: Curve, most: int = MOST_POINTS) -> tuple[list[float], list[float | None]]:
    """At most `most` points of a curve: means of equal stretches, over the finite values; None without one.

    >>> reduced(Curve(steps=[1, 2, 3, 4], values=[1.0, 3.0, 5.0, float("nan")]), most=2)
    ([1.5, 3.5], [2.0, 5.0])
    """
    size = math.ceil(len(curve.steps) / most) or 1
    steps, values = [], []
    for start in range(0, len(curve.steps), size):
        stretch = curve.steps[start : start + size]
        finite = [value for value in curve.values[start : start + size] if math.isfinite(value)]
        steps.append(stretch[0] if size == 1 else sum(stretch) / len(stretch))
        values.append(rounded(math.fsum(finite) / len(finite)) if finite else None)
    return steps, values


def curves_section(runs: Sequence[RunFiles], drawn: list[dict[str, Any]]) -> Html:
    """The section of the learning curves; replaces the content of `drawn` by the data that its script draws."""
    parts: list[Html] = []
    drawn.clear()
    for name in dict.fromkeys(stage.name for run in runs for stage in run.stages):
        found = [(run, curves_of(stage, run.missing)) for run in runs for stage in run.stages if stage.name == name]
        found = [(run, curves) for run, curves in found if curves]
        if not found:
            continue
        names = list(dict.fromkeys(key for _, curves in found for key in curves))
        kept = names[:MOST_METRICS]
        longest = max(len(curve.steps) for _, curves in found for curve in curves.values())
        notes = _notes(longest, len(names) - len(kept))
        parts.append(_stage(len(drawn), name, notes, [(run.name, curves) for run, curves in found]))
        drawn.append({"stage": name, "first": _first(kept), "metrics": _metrics(kept, found)})
    if not parts:
        return tag("p", f"No stage has left {FILE}, so there are no curves.", class_="missing")
    return joined(parts)


def _metrics(
    names: Sequence[str], found: Sequence[tuple[RunFiles, Mapping[str, Curve]]]
) -> dict[str, list[dict[str, Any]]]:
    metrics: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        metrics[name] = []
        for run, curves in found:
            if name in curves:
                steps, values = reduced(curves[name])
                metrics[name].append({"run": run.number, "x": steps, "y": values})
    return metrics


def _first(names: Sequence[str]) -> list[str]:
    """The metrics that are drawn at once: the usual ones, then others, all with more than a name in common."""
    chosen = [name for name in FIRST if name in names][:DRAWN]
    more = [name for name in names if name.startswith(("validation/", "rollout/")) and name not in chosen]
    return [*chosen, *more][: max(len(chosen), 2)]


def _notes(longest: int, left_out: int) -> list[str]:
    size = math.ceil(longest / MOST_POINTS)
    notes = [f"Each point is the mean of up to {size} logged values."] if size > 1 else []
    return [*notes, f"{left_out} further metrics are not drawn."] if left_out > 0 else notes


def _stage(place: int, name: str, notes: Sequence[str], found: Sequence[tuple[str, Mapping[str, Curve]]]) -> Html:
    rows = []
    for run, curves in found:
        for key, curve in curves.items():
            finite = [value for value in curve.values if math.isfinite(value)]
            label = key if len(found) == 1 else f"{key} ({run})"
            shown = [finite[0], min(finite), max(finite), finite[-1]] if finite else [None] * 4
            odd = len(curve.values) - len(finite)
            rows.append([label, len(curve.values), *map(number, shown), odd or ""])
    head = ["metric", "values", "first", "lowest", "highest", "last", "not finite"]
    return tag(
        "section",
        tag("h3", name),
        *(tag("p", note, class_="note") for note in notes),
        tag("div", class_="curves", data_curves=place),
        folded("As a table", table(head, rows, label=f"metrics of {name}")),
    )
