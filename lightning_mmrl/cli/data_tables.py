"""The tables of `mmrl data validate`, `stats` and `from-csv`."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from lightning_mmrl.data.report import Durations, Report, by_group
from lightning_mmrl.data.schema import Problem
from lightning_mmrl.training.console import report_console

_MAX_LABELS = 30
_MAX_VALUES = 3


def print_report(report: Report, num_shown: int, notes: Sequence[str] = ()) -> None:
    """Prints problems, splits, findings and notes; the last line counts samples and problems."""
    console = report_console()
    print_problems(console, report.problems, num_shown)
    console.print(splits_table(report))
    if any(split.labels for split in report.splits):
        console.print(labels_table(report))
    if any(split.media for split in report.splits):
        console.print(media_table(report))
    for finding in report.findings:
        word = "error" if finding.severe else "warning"
        console.print(f"{word}: {finding.what}: {finding.num}, such as {finding.example}", soft_wrap=True)
    for note in notes:
        console.print(note, soft_wrap=True)
    usable, bad = report.num_samples, len(report.problems)
    console.print(f"{usable} sample{'' if usable == 1 else 's'} usable, {bad} bad line{'' if bad == 1 else 's'}")


def warning_lines(warnings: Sequence[str], num_shown: int) -> list[str]:
    """Returns the first warnings, a line each, and a line with the number of further warnings."""
    rest = len(warnings) - num_shown
    more = [f"... and {rest} more warnings; --show {len(warnings)} shows all"] if rest > 0 else []
    return [*(f"warning: {warning}" for warning in warnings[:num_shown]), *more]


def print_problems(console: Console, problems: Sequence[Problem], num_shown: int) -> None:
    """Prints the first problems, a line each, and the number of problems by reason."""
    if not problems:
        return
    for problem in problems[:num_shown]:
        console.print(str(problem), soft_wrap=True)
    if len(problems) > num_shown:
        rest = len(problems) - num_shown
        console.print(f"... and {rest} more; --show {len(problems)} shows all")
    table = Table(title="Bad lines by reason", title_justify="left")
    table.add_column("reason")
    table.add_column("lines", justify="right")
    table.add_column("first at", overflow="fold")
    for group, members in by_group(problems).items():
        table.add_row(group, str(len(members)), members[0].place)
    console.print(table)


def splits_table(report: Report) -> Table:
    """Samples, labels and speakers by split."""
    table = _table("Splits", "split", "usable", "bad", "labels", "unlabeled", "speakers", "without speaker")
    for split in report.splits:
        counts = (
            *(split.num_samples, split.num_bad, len(split.labels)),
            *(split.num_unlabeled, split.num_speakers, split.num_without_speaker),
        )
        table.add_row(split.name, *map(str, counts))
    return table


def labels_table(report: Report) -> Table:
    """The number of samples of each label in each split."""
    splits = [split for split in report.splits if split.labels]
    table = _table("Labels", "label", *(split.name for split in splits))
    labels = list(dict.fromkeys(label for split in splits for label in split.labels))
    for label in labels[:_MAX_LABELS]:
        table.add_row(label[:40], *(str(split.labels.get(label, 0)) for split in splits))
    if len(labels) > _MAX_LABELS:
        rest = [sum(split.labels.get(label, 0) for label in labels[_MAX_LABELS:]) for split in splits]
        table.add_row(f"{len(labels) - _MAX_LABELS} more", *map(str, rest))
    return table


def media_table(report: Report) -> Table:
    """Counts, durations, rates and sizes of the media in each split."""
    timed = any(media.durations for split in report.splits for media in split.media)
    spans = ("min", "median", "max", "total") if timed else ()
    facts = ("rates and sizes",) if report.decoded else ()
    title = f"Media{'' if report.decoded else ', not decoded'}{'; times of the spans' if timed and not facts else ''}"
    table = _table(title, "split", "kind", "files", *spans, *facts)
    for split in report.splits:
        for media in split.media:
            times = _durations(media.durations) if timed else ()
            parts = [
                _most_frequent(media.sizes, "{}"),
                _most_frequent(media.frame_rates, "{} fps"),
                _most_frequent(media.sample_rates_hz, "{} Hz"),
            ]
            rates = ["; ".join(part for part in parts if part) or "-"] if report.decoded else []
            table.add_row(split.name, media.kind, str(media.num_files), *times, *rates)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    words = ("split", "label", "kind", "rates and sizes")
    for name in columns:
        table.add_column(name, justify="left" if name in words else "right", overflow="fold")
    return table


def _durations(durations: Durations | None) -> tuple[str, str, str, str]:
    if durations is None:
        return ("-", "-", "-", "-")
    three = (f"{each:.2f} s" for each in (durations.minimum, durations.median, durations.maximum))
    hours = durations.total / 3600
    total = f"{hours:.2f} h" if hours >= 1 else f"{durations.total:.1f} s"
    return (*three, total)  # type: ignore[return-value]


def _most_frequent(counts: Mapping[str, int], form: str) -> str:
    """Returns, for example, `25 fps` if all values are equal, else the most frequent values with their counts."""
    shown = list(counts.items())[:_MAX_VALUES]
    if len(counts) == 1:
        return form.format(shown[0][0])
    rest = f", {len(counts) - len(shown)} others" if len(counts) > len(shown) else ""
    return ", ".join(f"{form.format(value)} ({number})" for value, number in shown) + rest
