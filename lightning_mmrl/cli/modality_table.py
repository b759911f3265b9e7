"""Prints the modality report of an evaluation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_mmrl.evaluation.modality import MODALITY, statements
from lightning_mmrl.files import read_json

_FULL = "everything"


def print_modality(folder: Path, what: str, console: Console) -> None:
    """Prints headlines by input, drops, and what follows from them; nothing if the evaluation has no such report.

    Args:
        folder: The folder of the evaluation.
        what: The model in words.
        console: Where to print.

    Raises:
        StageError: The report cannot be read.
    """
    path = folder / MODALITY
    if not path.exists():
        return
    report = read_json(path, "evaluate again")
    if report["sets"]:
        console.print(_table(report["sets"], what))
    for name, sentence in statements(report):
        console.print(f"{name}: {sentence}", soft_wrap=True)


def _table(sets: Mapping[str, Any], what: str) -> Table:
    table = Table(title=f"Sound and picture {what}, in %, with 95 % intervals; drops are paired, in points")
    for column in ("set", "input", "headline", "value", "drop"):
        table.add_column(column, justify="right" if column in ("value", "drop") else "left")
    for name, each in sets.items():
        for variant, interval in each["variants"].items():
            drop = each["drops"].get(variant)
            shown = _FULL if drop is None else variant.replace("_", " ")
            cells = [_percent(interval), "" if drop is None else _percent(drop, "+")]
            table.add_row(name, shown, each["title"], *cells)
    return table


def _percent(interval: Mapping[str, float], sign: str = "") -> str:
    estimate, low, high = (100 * interval[key] for key in ("estimate", "low", "high"))
    return f"{estimate:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
