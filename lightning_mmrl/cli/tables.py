"""The tables of results that commands print."""

import resource
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.table import Table

from lightning_mmrl.app.run import FinishedRun
from lightning_mmrl.curriculum.compare import Comparison, Gain, SetResult
from lightning_mmrl.curriculum.costs import COLUMNS, cost_rows
from lightning_mmrl.evaluation.intervals import Interval
from lightning_mmrl.evaluation.records import COUNTED_WRONG
from lightning_mmrl.evaluation.tasks.task import Task
from lightning_mmrl.report.page import FILE as REPORT
from lightning_mmrl.training.console import format_seconds, report_console
from lightning_mmrl.types.costs import StageCosts
from lightning_mmrl.types.redaction import redact


def print_comparison(outcome: FinishedRun) -> None:
    """Prints the results of every stage, its gain, its times, and where its files are."""
    console = report_console()
    for results, gains in by_task(outcome.comparison):
        console.print(results_table(results))
        if gains:
            console.print(gains_table(results[0].task, gains))
    costs = {result.name: result.costs for result in outcome.results if result.costs is not None}
    if costs:
        console.print(costs_table(costs))
    for result in outcome.results:
        phases = ", ".join(f"{phase} {format_seconds(value)}" for phase, value in result.seconds.items())
        idle = "nothing to do, " if result.idle else ""
        console.print(f"{result.name}: {idle}{phases}")
        for name, reason in result.empty_inputs.items():
            console.print(f"    without {name}: {reason}", soft_wrap=True)
    kibibytes = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    console.print(f"peak memory  {kibibytes / 2**20:.1f} GiB (this process and its largest worker)")
    console.print(f"run folder   {outcome.directory}")
    page = outcome.directory / REPORT
    if page.is_file():
        console.print(f"report       {page}")
    handoffs = [result.handoff for result in outcome.results if result.handoff is not None]
    if handoffs:
        console.print(f"checkpoint   {outcome.directory / handoffs[-1].path}")
    if outcome.tracking_uri:
        console.print(f"tracking     {redact(outcome.tracking_uri)}")


def by_task(comparison: Comparison) -> list[tuple[list[SetResult], list[Gain]]]:
    """Groups results and gains by kind of task, so that each table shows results that were measured alike."""
    return [
        (
            [result for result in comparison.results if result.task.title == title],
            [gain for gain in comparison.gains if gain.task.title == title],
        )
        for title in dict.fromkeys(result.task.title for result in comparison.results)
    ]


def results_table(results: Sequence[SetResult]) -> Table:
    """Returns the metrics of one kind of task in percent, with the 95 % interval of each metric that has one.

    A set from which samples were left out has a second row, which counts these samples as wrong answers.
    """
    task = results[0].task
    table = Table(title=f"{task.title}, in %, with 95 % intervals")
    for name in ("stage", "set", "samples", *(each.title for each in task.measures if each.in_table)):
        table.add_column(name, justify="left" if name in ("stage", "set") else "right")
    for row in results:
        table.add_row(*_cells(row))
        if row.num_left_out:
            counted = {key: f"{key}{COUNTED_WRONG}" for key in row.metrics}
            metrics = {key: row.metrics[wrong] for key, wrong in counted.items() if wrong in row.metrics}
            whole = replace(
                row,
                name=f"{row.name} + {row.num_left_out} left out, as wrong",
                num_samples=row.num_samples + row.num_left_out,
                metrics=metrics,
                intervals=row.counted_wrong,
            )
            table.add_row(*_cells(whole))
    return table


def gains_table(task: Task, gains: Sequence[Gain], over: str = "the stage it started from") -> Table:
    """Returns each stage's gain over another one, in a task's headline metric on the same samples."""
    title = task.headline_title
    table = Table(title=f"{title[0].upper()}{title[1:]} gained over {over}, paired, in points, with 95 % intervals")
    for name in ("stage", "over", "set", "gain"):
        table.add_column(name, justify="right" if name == "gain" else "left")
    for gain in gains:
        unlike = f", {gain.num_unpaired} unlike samples aside" if gain.num_unpaired else ""
        table.add_row(gain.stage, gain.over, f"{gain.name}{unlike}", _percent(gain.difference, sign="+"))
    return table


def costs_table(costs: Mapping[str, StageCosts]) -> Table:
    """Returns what each stage that trains or samples cost: tokens, seconds by phase, waiting, and MFU."""
    table = Table(title="Cost by stage")
    for name in ("stage", *COLUMNS):
        table.add_column(name, justify="right" if name in ("time", "share", "MFU") else "left")
    for stage, each in costs.items():
        for number, row in enumerate(cost_rows(each)):
            table.add_row("" if number else stage, *row)
    return table


def _cells(row: SetResult) -> list[str]:
    cells = [row.stage, row.name, str(row.num_samples)]
    for each in row.task.measures:
        value = row.metrics.get(each.name)
        if each.in_table and each.interval:
            cells.append(_percent(row.intervals[each.name]))
        elif each.in_table:
            cells.append("-" if value is None else f"{100 * value:.1f}")
    return cells


def _percent(interval: Interval, sign: str = "") -> str:
    return f"{100 * interval.estimate:{sign}.1f} [{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]"
