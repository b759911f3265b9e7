"""Prints a comparison of arms: its tables, their explanation, and what failed or is missing."""

from pathlib import Path

from rich.table import Table

from lightning_mmrl.report.arms import Summary
from lightning_mmrl.report.arms_page import FIGURE, PAGE, RESULTS, TABLE
from lightning_mmrl.report.arms_tables import EXPLORATORY, INCOMPLETE, Grid, main_grids, verdict
from lightning_mmrl.training.console import PlainConsole


def print_comparison(summary: Summary, console: PlainConsole) -> None:
    """Prints the differences and the arms, and names the files of `write_comparison`."""
    print_summary(summary, console)
    folder: Path = summary.plan.folder
    console.print(f"{folder / PAGE} is the whole; {TABLE}, {FIGURE} and {RESULTS} lie beside it", soft_wrap=True)


def print_summary(summary: Summary, console: PlainConsole) -> None:
    """Prints the differences and the arms."""
    if summary.plan.exploratory:
        console.print(EXPLORATORY, soft_wrap=True)
    if not summary.is_complete:
        console.print(INCOMPLETE, soft_wrap=True)
    for grid in main_grids(summary):
        console.print(_table(grid))
        for line in grid.caption:
            console.print(f"  {line}", soft_wrap=True)
    for note in summary.notes:
        console.print(note, soft_wrap=True)
    if told := verdict(summary):
        console.print(told, soft_wrap=True)


def _table(grid: Grid) -> Table:
    table = Table(title=grid.title)
    for place, name in enumerate(grid.head):
        if place < grid.texts:
            table.add_column(name, overflow="fold")
        else:  # a long head wraps, and a number does not
            table.add_column(name, justify="right", min_width=max((len(row[place]) for row in grid.rows), default=0))
    for row in grid.rows:
        table.add_row(*row)
    return table
