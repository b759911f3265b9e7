"""The lines that show how a language model judged the answers of a run."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from lightning_mmrl.app.judging import JudgedSet
from lightning_mmrl.evaluation.intervals import Interval


def judged_lines(sets: Sequence[JudgedSet], judge: str) -> Iterator[Any]:
    """Yields a table with a row for each stage and set, and a line for each reason why an answer has no verdict."""
    from rich.table import Table

    table = Table(title=f"Answers as judged by {judge} (%, 95 % intervals)")
    for column in ("stage", "set", "answers", "no verdict", "judge", "rule", "agreement", "kappa", "only judge/rule"):
        table.add_column(column, justify="left" if column in ("stage", "set") else "right")
    for each in sets:
        counts = each.counts
        table.add_row(
            each.stage,
            each.name,
            str(each.num_answers),
            str(len(each.problems)),
            *(_told(each.intervals.get(name)) for name in ("judge", "rule", "agreement")),
            f"{counts.kappa:.2f}" if each.intervals else "-",
            f"{counts.only_judge}/{counts.only_rule}",
        )
    yield table
    reasons = Counter(reason for each in sets for reason in each.problems.values())
    for reason, number in reasons.most_common(5):
        yield f"no verdict for {number} answer{'s' * (number > 1)}: {reason}"


def _told(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{100 * interval.estimate:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
