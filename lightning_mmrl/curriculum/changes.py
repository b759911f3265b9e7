"""Differences between the configuration of finished stages and the present one."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_mmrl.settings.renamed import earlier_default, renamed
from lightning_mmrl.types.records import StageSpec

MOST_SHOWN = 12
_ABSENT = object()


def same_content(finished: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two configurations of a stage decide the same outcome; an absent key counts as null.

    Thus a run of an earlier version, which lacks a newer key, continues as long as this key is null.

    >>> same_content({"seed": 0}, {"seed": 0, "stage.prompt": None}), same_content({"seed": 0}, {"seed": 1})
    (True, False)
    """
    return all(finished.get(key) == now.get(key) for key in {*finished, *now})


def changed_keys(finished: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key: old -> new` for every key that differs, in order; a key that is absent has the value "-".

    >>> changed_keys({"seed": 0, "stage.num_steps": 200}, {"seed": 0, "stage.num_steps": 300})
    ['stage.num_steps: 200 -> 300']
    """
    lines = []
    for key in dict.fromkeys([*finished, *now]):
        sides = [values.get(key, _ABSENT) for values in (finished, now)]
        if finished.get(key) != now.get(key):
            texts = ["-" if value is _ABSENT else str(value) for value in sides]
            old, new = (text if len(text) <= 60 else text[:57] + "..." for text in texts)
            lines.append(f"{renamed(key) or key}: {old} -> {new}{earlier_default(key, *sides)}")
    return lines


def describe_changes(finished: Mapping[str, Mapping[str, Any]], specs: Sequence[StageSpec]) -> list[str]:
    """Returns the changes of all stages, one per line; a change that several stages share is listed once.

    Args:
        finished: Maps the name of each finished stage to the content that it was run with.
        specs: The stages as they are configured now.
    """
    stages_of: dict[str, list[str]] = {}
    for spec in specs:
        if spec.name in finished:
            for line in changed_keys(finished[spec.name], spec.content):
                stages_of.setdefault(line, []).append(spec.name)
    lines = []
    for line, names in stages_of.items():
        owners = names[0] if len(names) == 1 else "{" + ",".join(names) + "}"
        of_one = line.startswith(("index:", "starts_from:"))
        shared = f"{', '.join(names)} {line}" if of_one else line
        lines.append(f"stages.{owners}.{line.removeprefix('stage.')}" if line.startswith("stage.") else shared)
    if len(lines) > MOST_SHOWN:
        lines = [*lines[:MOST_SHOWN], f"and {len(lines) - MOST_SHOWN} more"]
    return lines
