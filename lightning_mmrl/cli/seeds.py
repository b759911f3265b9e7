"""`mmrl seeds RUN RUN ...`: combines runs that differ in their seed, by Student's t; torch is not loaded."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from lightning_mmrl.report.seeds import OverSeeds

TITLES = ("Headline by stage", "Gain over the stage it started from", "Difference to the other runs")


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code.

    Raises:
        DataError: A folder is none of a run, two runs have one seed, or there is nothing that all of them evaluated.
    """
    parser = argparse.ArgumentParser(
        prog="mmrl seeds",
        description="Combine runs that differ in their seed: the headline of each stage and set, and the gain of each "
        "stage over the one it started from, as means over seeds with 95 % intervals by Student's t. With --over also "
        "the difference to other runs, paired by seed. Intervals of single runs resample speakers and say nothing "
        "about other seeds.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, one for each seed")
    parser.add_argument("--over", type=Path, nargs="+", metavar="RUN", help="runs to compare with, of the same seeds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args(arguments)

    # Loaded here, so that argument errors load no libraries.
    from lightning_mmrl.errors import DataError
    from lightning_mmrl.files import write_json
    from lightning_mmrl.report.run_files import read_run
    from lightning_mmrl.report.seeds import against, by_seed, gains, headlines
    from lightning_mmrl.training.console import report_console

    runs = by_seed([read_run(folder) for folder in options.runs])
    found = {"headlines": headlines(runs), "gains": gains(runs), "differences": []}
    if options.over:
        others = by_seed([read_run(folder) for folder in options.over])
        found["differences"] = against(runs, others, options.over[0].name)
    if not any(found.values()):
        raise DataError("there is no set that all of the runs evaluated; name runs of one experiment")
    console, seeds = report_console(), list(runs)
    for title, rows in zip(TITLES, found.values(), strict=True):
        if rows:
            console.print(_table(title, rows, seeds))
    if options.json is not None:
        content = {name: [each.plain() for each in rows] for name, rows in found.items()}
        write_json(options.json, {"seeds": seeds, **content})
    return 0


def _table(title: str, rows: Sequence["OverSeeds"], seeds: Sequence[int]) -> "Table":
    from rich.table import Table

    signed = any(each.over for each in rows)
    caption = f"seeds {', '.join(map(str, seeds))}; brackets are t intervals over seeds"
    table = Table(title=f"{title}, over {len(seeds)} seeds, in {'points' if signed else '%'}", caption=caption)
    compared = ["over", "p"] if signed else []
    for name in ("stage", "set", *compared[:1], "headline", "mean [95 %]", "sd", *compared[1:], "each seed"):
        table.add_column(name)
    for row in rows:
        found, sign = row.found, "+" if signed else ""
        mean, low, high = (f"{100 * value:{sign}.1f}" for value in (found.mean, found.low, found.high))
        each = ", ".join(f"{100 * value:{sign}.1f}" for value in found.values)
        over, p_value = ([row.over], [f"{found.p_value:.3f}"]) if row.over else ([], [])
        cells = (*over, row.headline, f"{mean} [{low}, {high}]", f"{100 * found.sd:.1f}", *p_value, each)
        table.add_row(row.stage, row.name, *cells)
    return table
