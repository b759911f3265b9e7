"""Rules by which rows are left out: the pass rate of prompts, and equal numbers for each value of a column."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_mmrl.data.rollout_table import RolloutRow
from lightning_mmrl.errors import DataError
from lightning_mmrl.settings.filter import EvenSettings, FilterSettings
from lightning_mmrl.types.records import Sample

PASS_RATE = "pass_rate"
OWN_COLUMNS = ("solution", "speaker", "split")


def prompt_reason(row: RolloutRow, settings: FilterSettings) -> str | None:
    """Returns the first reason why a prompt is left out; None if it is kept.

    Both bounds of the pass rate count as within. `mixed` is the rule of MM-Eureka: neither none nor all are right.
    """
    judged = sum(right is not None for right in row.right)
    rate, low, high = row.pass_rate, settings.min_pass_rate, settings.max_pass_rate
    if rate is None or judged < settings.min_judged:
        return "too_few_judged"
    reasons = {
        "never_solved": settings.mixed and rate == 0,
        "always_solved": settings.mixed and rate == 1,
        "below_band": low is not None and rate < low,
        "above_band": high is not None and rate > high,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def column_value(sample: Sample, column: str) -> Any:
    """Returns the value of a manifest's column; None if the sample has none."""
    return getattr(sample, column) if column in OWN_COLUMNS else sample.extras.get(column)


def evened(names: Sequence[str], values: Sequence[Any], settings: EvenSettings, seed: int) -> Mapping[str, str]:
    """Maps the names of rows that are left out, so that each value is equally frequent, to the reason.

    Which rows stay depends on the seed and their names alone, so a row more changes no other row's rank.

    Args:
        names: Names of the rows, all different.
        values: Their values in the column.
        settings: The column, and the number of rows of each value.
        seed: Decides which rows stay.

    Raises:
        DataError: No row has a value.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    dropped = {}
    for name, value in zip(names, values, strict=True):
        if value is None:
            dropped[name] = "no_value"
        else:
            groups[repr(value)].append(name)
    if names and not groups:
        raise DataError(f"even.by is {settings.by!r}, and none of {len(names)} rows has a value there; correct it")
    most = settings.at_most or min(map(len, groups.values()), default=0)
    for group in groups.values():
        ranked = sorted(group, key=lambda name: hashlib.blake2b(f"{seed}/{name}".encode()).digest())
        dropped |= dict.fromkeys(ranked[most:], "evened_out")
    return dropped
