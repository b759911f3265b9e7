"""Tables of a run as files that MLflow shows: scores, confusion matrices, sampled answers."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.files import write_whole
from lightning_mmrl.report.answers import read_answers
from lightning_mmrl.report.rollouts import Shown, browser_groups, read_rollouts, spread
from lightning_mmrl.report.run_files import Evaluated, RunFiles
from lightning_mmrl.report.scores import UNREAD, labels_of, with_answered

FOLDER = "tables"
"""Folder of the tables in a run folder, and among the artifacts of the run."""
MOST_MATRICES = 60
"""Confusion matrices of a run; those of its last stages."""
MOST_GROUPS = 200
"""Groups of sampled answers of a stage, evenly spread."""
MOST_CHARACTERS = 3_000_000
"""Characters of the rows of a stage; with more, fewer groups are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table under a name; the cells of a row are texts, numbers, truth values or None."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def write_tables(run: RunFiles) -> list[Path]:
    """Writes the tables of a run to its folder `tables`, as `mlflow.log_table` would, and returns their paths.

    Their size is bounded: 200 groups of sampled answers of each stage with 3 MB, and 60 confusion matrices.

    Raises:
        DiskError: A table cannot be written.
    """
    matrices = [table for each in run.evaluated if (table := _matrix(each, run)) is not None]
    groups = browser_groups(0, read_rollouts(run))
    paths = []
    for table in [_scores(run.evaluated), *matrices[-MOST_MATRICES:], *_answers(groups)]:
        path = run.folder / FOLDER / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', table.name)}.json"
        content = {"columns": list(table.columns), "data": [list(row) for row in table.rows]}
        write_whole(path, json.dumps(content, allow_nan=False) + "\n", shared=True, durable=False)
        paths.append(path)
    return paths


def _scores(evaluated: Iterable[Evaluated]) -> Table:
    rows = []
    for each in evaluated:
        interval = each.intervals.get(each.headline, {})
        value = each.metrics.get(each.headline)
        numbers = [_finite(value), _finite(interval.get("low")), _finite(interval.get("high"))]
        rows.append([each.stage, each.name, each.headline, *numbers, each.num_samples, each.num_left_out])
    columns = ("stage", "set", "headline", "value", "low", "high", "samples", "left_out")
    return Table(name="scores", columns=columns, rows=rows)


def _matrix(each: Evaluated, run: RunFiles) -> Table | None:
    """Counts of answers by truth; None without a closed set of labels or without answers."""
    labels = labels_of(each)
    answers = read_answers(each, run) if labels else None
    if answers is None:
        return None
    counts = Counter((one.truth, one.predicted) for one in answers)
    named = with_answered(labels, answers)
    unread = [UNREAD] if any(one.predicted is None for one in answers) else []
    rows = [
        [truth, *(counts[truth, label] for label in named), *(counts[truth, None] for _ in unread)] for truth in labels
    ]
    return Table(name=f"confusion-{each.stage}-{each.name}", columns=["truth", *named, *unread], rows=rows)


def _answers(groups: Sequence[Shown]) -> list[Table]:
    """One table for each stage that sampled, with a row for each answer."""
    found = []
    for stage in dict.fromkeys(str(group.values["stage"]) for group in groups):
        shown = _bounded([group.values for group in groups if group.values["stage"] == stage])
        names = list(Counter(name for group in shown for each in group["responses"] for name in each["components"]))
        fixed = ("table", "id", "question", "label", "answer", "reward", "over_mean")
        fixed += ("advantage", "right", "tokens", "truncated")
        rows = [
            [
                group["table"],
                group["id"],
                "\n".join(text for _, text in group["turns"]),
                group["label"],
                *(each[key] for key in ("text", "reward", "over", "advantage", "right", "tokens", "truncated")),
                *(each["components"].get(name) for name in names),
            ]
            for group in shown
            for each in group["responses"]
        ]
        found.append(
            Table(name=f"rollouts-{stage}", columns=[*fixed, *(f"reward.{name}" for name in names)], rows=rows)
        )
    return found


def _bounded(groups: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    number = min(MOST_GROUPS, len(groups))
    chosen = [groups[place] for place in spread(len(groups), number)]
    while number > 1 and sum(len(str(group)) for group in chosen) > MOST_CHARACTERS:
        number //= 2
        chosen = [groups[place] for place in spread(len(groups), number)]
    return chosen


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None


def headlines(run: RunFiles) -> Mapping[tuple[str, str], float]:
    """The finite headline of each evaluated stage on each set, by stage and set."""
    found = {(each.stage, each.name): _finite(each.metrics.get(each.headline)) for each in run.evaluated}
    return {key: value for key, value in found.items() if value is not None}
