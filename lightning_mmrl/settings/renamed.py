"""Old and new names of keys; digests of stages are made with the old names, so that a new name does not change them."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_mmrl.suggestions import unknown_key

RENAMED = {
    "algorithm.distill": "algorithm.resample",
    "rewards.parts": "rewards.components",
    "rewards.pass_part": "rewards.pass_component",
}
"""Maps old to new parts of dotted keys; keys below a renamed key move with it."""

LATER: Mapping[str, Any] = {
    "prompt.prefix": "",
    "stage.algorithm.critic.normalize_rewards": False,
    "stage.algorithm.router": None,
    "stage.keep_best": False,
    "stage.loss": None,
    "stage.mask_history": False,
    "stage.rollout.cuda_graphs": False,
}
"""Keys of a stage that came later, with the value at which its digest leaves them out."""


def renamed(key: str) -> str | None:
    """Returns the present name of a key that was renamed; None for any other key.

    >>> renamed("stages.reason.rewards.parts.label.labels")
    'stages.reason.rewards.components.label.labels'
    >>> renamed("stages.reason.rewards.weights") is None
    True
    """
    return _replaced(key, RENAMED)


def first_name(key: str) -> str:
    """Returns the name that a key had at first; a stage's digest keeps this name, so that earlier runs continue.

    >>> first_name("stage.rewards.components.label.labels"), first_name("stage.num_steps")
    ('stage.rewards.parts.label.labels', 'stage.num_steps')
    """
    return _replaced(key, {new: old for old, new in RENAMED.items()}) or key


def _replaced(key: str, names: Mapping[str, str]) -> str | None:
    for old, new in names.items():
        before, found, after = f".{key}.".partition(f".{old}.")
        if found:
            return f"{before}.{new}.{after}".strip(".")
    return None


def earlier_default(key: str, old: Any, new: Any) -> str:
    """Returns the end of a line about a key whose default is another one than in earlier versions; empty for others.

    >>> earlier_default("stage.data.sources.own.weight", 1.0, None)
    ' (1 was the default of earlier versions; set weight: 1 for each source to go on as before)'
    """
    if (old, new) == (1.0, None) and key.startswith("stage.data.sources.") and key.endswith(".weight"):
        return " (1 was the default of earlier versions; set weight: 1 for each source to go on as before)"
    return ""


def key_hint(key: str, tree: Mapping[Any, Any], schema: Any, extra: Iterable[str] = ()) -> str:
    """Returns the end of a message with the new name of a renamed key; for other keys, the hint of `unknown_key`."""
    name = renamed(key)
    return unknown_key(key, tree, schema, extra) if name is None else f"; it is called {name!r} now"
