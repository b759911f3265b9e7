"""What differs between the configuration of a run's finished stages and the one it is started with now."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_mmrl.settings.renamed import renamed
from lightning_mmrl.types.records import StageSpec

MOST_SHOWN = 12
_ABSENT = object()


def changed_keys(finished: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key: old -> new` for every key that differs, in order; "-" stands for a key that is not there.

    >>> changed_keys({"seed": 0, "stage.num_steps": 200}, {"seed": 0, "stage.num_steps": 300})
    ['stage.num_steps: 200 -> 300']
    """
    keys = dict.fromkeys([*finished, *now])
    pairs = {key: (finished.get(key, _ABSENT), now.get(key, _ABSENT)) for key in keys}
    return [f"{renamed(key) or key}: {_shown(old)} -> {_shown(new)}" for key, (old, new) in pairs.items() if old != new]


def describe_changes(finished: Mapping[str, Mapping[str, Any]], specs: Sequence[StageSpec]) -> list[str]:
    """The changes of all stages, one a line; what changed for several stages alike is said once.

    Args:
        finished: Name of a finished stage to the content it was run with.
        specs: The stages as they are configured now.
    """
    stages_of: dict[str, list[str]] = {}
    for spec in specs:
        if spec.name in finished:
            for line in changed_keys(finished[spec.name], spec.content):
                stages_of.setdefault(line, []).append(spec.name)
    lines = [_placed(line, names) for line, names in stages_of.items()]
    if len(lines) > MOST_SHOWN:
        lines = [*lines[:MOST_SHOWN], f"and {len(lines) - MOST_SHOWN} more"]
    return lines


def _placed(line: str, names: Sequence[str]) -> str:
    """A stage's own keys under their full name; shared keys as they are."""
    if line.startswith("stage."):
        owners = names[0] if len(names) == 1 else "{" + ",".join(names) + "}"
        return f"stages.{owners}.{line.removeprefix('stage.')}"
    return line if not line.startswith(("index:", "starts_from:")) else f"{', '.join(names)} {line}"


def _shown(value: object) -> str:
    if value is _ABSENT:
        return "-"
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
