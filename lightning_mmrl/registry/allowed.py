"""Refuses every `_target_` that is neither registered for its place nor code that `--allow-targets` opened."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.registry.names import NESTED, PLACES, REGISTRY
from lightning_mmrl.registry.own_code import OPENED_KINDS, how_to_open, is_function_opened, is_opened
from lightning_mmrl.suggestions import shown

USER_FUNCTION = "lightning_mmrl.rewards.user_function.UserFunction"
INSTRUCTIONS = ("_args_", "_convert_", "_recursive_", "_partial_")
"""Keys by which Hydra builds a node differently: a user needs none but `_partial_` of an optimizer."""
ALL_NAMES = frozenset(name for names in REGISTRY.values() for name in names)


def check_allowed(tree: Mapping[str, Any]) -> None:
    """Refuses a whole configuration if one of its nodes names something that does not belong at the node's place.

    Raises:
        ConfigError: Naming the key, the target, the nearest one of that kind, and the flag that opens own code.
    """
    for path, node, kind in _nodes(tree, (), None):
        key = ".".join(path)
        if "_target_" in node:
            _check_node(node, key, kind)
        for name in INSTRUCTIONS if kind is not None else ():
            if name in node and not (name == "_partial_" and kind == "optimizer"):
                raise ConfigError(f"{key}.{name} is refused; remove it, and give every parameter by its name")


def check_known(target: object, key: str) -> None:
    """Refuses a target that is neither registered nor opened, before its import and wherever its node comes from.

    Raises:
        ConfigError: Naming the key and the target.
    """
    if not isinstance(target, str) or (target not in ALL_NAMES and not is_opened(target)):
        raise _refusal(key, str(target), sorted(ALL_NAMES), "nothing that can be built")


def _nodes(tree: Any, path: tuple[str, ...], kind: str | None) -> Iterator[tuple[tuple[str, ...], Any, str | None]]:
    """Yields every mapping in a tree with its path and the kind that belongs there; None where no node belongs."""
    if isinstance(tree, Mapping):
        yield path, tree, kind
        # The parameters of opened code are not known here: nodes in it may be of the same kind.
        own = kind if is_opened(str(tree.get("_target_"))) else None
        for name, value in tree.items():
            below = (*path, str(name))
            nested = NESTED.get(f"{kind}.{name}") or NESTED.get(f"{kind}.*")
            yield from _nodes(value, below, nested or own or _place(below))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            # Nodes in a list are of the kind that the parameter takes, such as several rewards.
            yield from _nodes(value, (*path[:-1], f"{path[-1]}[{index}]"), kind)


def _place(path: tuple[str, ...]) -> str | None:
    for place, kind in PLACES.items():
        names = place.split(".")
        if len(names) == len(path) and all(name in ("*", part) for name, part in zip(names, path, strict=True)):
            return kind
    return None


def _check_node(node: Mapping[str, Any], key: str, kind: str | None) -> None:
    target = node["_target_"]
    if kind is None:
        raise ConfigError(f"{key}._target_ is {shown(target)!r}, and nothing is built at {key}; remove it")
    if target not in REGISTRY[kind] and not (kind in OPENED_KINDS and is_opened(str(target))):
        raise _refusal(f"{key}._target_", str(target), REGISTRY[kind], f"no {kind}")
    if target == USER_FUNCTION:
        function = node.get("function")
        if not isinstance(function, str) or not is_function_opened(function):
            place = str(function).rpartition(":")[0]
            flag = how_to_open(place) or "; name a function in a file or package of your own"
            raise ConfigError(f"{key}.function is {shown(function)!r}, which runs code that is not opened{flag}")


def _refusal(key: str, target: str, names: Any, what: str) -> ConfigError:
    nearest = "".join(
        f"; the nearest one is {each!r}" for each in difflib.get_close_matches(target, names, n=1, cutoff=0.0)
    )
    flag = "" if target in ALL_NAMES else how_to_open(target)
    return ConfigError(f"{key} is {shown(target)!r}, which is {what}{nearest}{flag}")
