"""The tables of results that commands print."""

import resource

from rich.table import Table

from lightning_mmrl.app.run import FinishedRun
from lightning_mmrl.curriculum.compare import Comparison, SetResult
from lightning_mmrl.evaluation.intervals import Interval
from lightning_mmrl.evaluation.records import COUNTED_WRONG
from lightning_mmrl.training.console import format_seconds, report_console
from lightning_mmrl.types.redaction import redact


def print_comparison(outcome: FinishedRun) -> None:
    """Prints the results of every stage, its gain, its times, and where its files are."""
    console = report_console()
    console.print(results_table(outcome.comparison))
    console.print(gains_table(outcome.comparison))
    for result in outcome.results:
        phases = ", ".join(f"{phase} {format_seconds(value)}" for phase, value in result.seconds.items())
        console.print(f"{result.name}: {phases}")
    kibibytes = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    console.print(f"peak memory  {kibibytes / 2**20:.1f} GiB (this process and its largest worker)")
    console.print(f"run folder   {outcome.directory}")
    handoffs = [result.handoff for result in outcome.results if result.handoff is not None]
    if handoffs:
        console.print(f"checkpoint   {outcome.directory / handoffs[-1].path}")
    if outcome.tracking_uri:
        console.print(f"tracking     {redact(outcome.tracking_uri)}")


def results_table(comparison: Comparison) -> Table:
    """WAR and UAR in percent with 95 % intervals, share of valid formats, and consistency of thought and label.

    A set with samples left out has a second row, in which they count as wrong answers.
    """
    table = Table(title="Recognition by stage, in %, with 95 % intervals")
    for name in ("stage", "set", "samples", "WAR", "UAR", "valid format", "consistency"):
        table.add_column(name, justify="left" if name in ("stage", "set") else "right")
    for row in comparison.results:
        table.add_row(*_cells(row))
        if row.num_left_out:
            counted = {key: f"{key}{COUNTED_WRONG}" for key in row.metrics}
            metrics = {key: row.metrics[wrong] for key, wrong in counted.items() if wrong in row.metrics}
            whole = SetResult(
                stage=row.stage,
                name=f"{row.name} + {row.num_left_out} left out, as wrong",
                num_samples=row.num_samples + row.num_left_out,
                metrics=metrics,
                war=row.counted_wrong["war"],
                uar=row.counted_wrong["uar"],
            )
            table.add_row(*_cells(whole))
    return table


def gains_table(comparison: Comparison) -> Table:
    """UAR differences between each stage and the stage that it started from, on the same samples."""
    table = Table(title="UAR gained over the stage it started from, paired, in points, with 95 % intervals")
    for name in ("stage", "over", "set", "gain"):
        table.add_column(name, justify="right" if name == "gain" else "left")
    for gain in comparison.gains:
        table.add_row(gain.stage, gain.over, gain.name, _percent(gain.difference, sign="+"))
    return table


def _cells(row: SetResult) -> list[str]:
    consistency = row.metrics.get("consistency")
    return [
        row.stage,
        row.name,
        str(row.num_samples),
        _percent(row.war),
        _percent(row.uar),
        f"{100 * row.metrics['valid_format']:.1f}",
        "-" if consistency is None else f"{100 * consistency:.1f}",
    ]


def _percent(interval: Interval, sign: str = "") -> str:
    return f"{100 * interval.estimate:{sign}.1f} [{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]"
