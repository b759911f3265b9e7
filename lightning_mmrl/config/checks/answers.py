"""Refuses keys of a selection that contradict each other, for every kind of stage that selects answers."""

from lightning_mmrl.settings.rules import require
from lightning_mmrl.settings.selection import SelectionSettings


def check_answer_selection(path: str, selection: SelectionSettings) -> None:
    """Refuses a selection that could keep nothing.

    Args:
        path: The key of the selection.
        selection: A selection in which each value meets the rule of its key.

    Raises:
        ConfigError: A lower bound is above its upper bound.
    """
    for name in ("tokens", "pass_rate"):
        low, high = getattr(selection, f"min_{name}"), getattr(selection, f"max_{name}")
        ordered = low is None or high is None or low <= high
        require(ordered, f"{path}.min_{name}", low, f"at most {path}.max_{name}, which is {high}, or null")
