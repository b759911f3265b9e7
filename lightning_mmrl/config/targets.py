"""The only place that turns `_target_` nodes into objects; keys are bound to the signature before anything is built."""

import inspect
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate

from lightning_mmrl.config.validate import ALLOWED_TARGETS, check_allowed, did_you_mean, first_line
from lightning_mmrl.errors import ConfigError, MmrlError

RESERVED = frozenset({"_target_", "_partial_", "_args_", "_convert_", "_recursive_"})


def check_targets(tree: Any, path: str) -> None:
    """Imports every target below a node and binds its keys.

    Raises:
        ConfigError: A target does not exist, or a key is not one of its parameters.
    """
    if isinstance(tree, Mapping):
        if "_target_" in tree:
            _check_target(tree, path)
        for key, value in tree.items():
            check_targets(value, f"{path}.{key}")
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            check_targets(value, f"{path}[{index}]")


def build(node: Any, path: str, **more: Any) -> Any:
    """The object of a node; `more` are further keyword arguments.

    Raises:
        ConfigError: A target is outside the allow-list, or refuses its arguments.
    """
    check_allowed(node, path)
    check_targets(node, path)
    try:
        return instantiate(dict(node), _convert_="all", **more)
    except HydraException as error:
        cause = error.__cause__
        if isinstance(cause, MmrlError):
            raise cause from error
        if isinstance(cause, TypeError | ValueError | OSError):
            raise ConfigError(f"{path}: {first_line(cause)}") from error
        raise


def optional(node: Any, path: str, default: Any) -> Any:
    """The object of a node, or the default for a null node."""
    return default if node is None else build(node, path)


def _check_target(node: Mapping[str, Any], path: str) -> None:
    target = node["_target_"]
    try:
        found = resolve_name(str(target))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{path}._target_: {target!r} cannot be imported ({first_line(error)}); check the path"
        ) from error
    if not callable(found) or not str(getattr(found, "__module__", "")).startswith(ALLOWED_TARGETS):
        # `lightning_mmrl.config.build.os.system` has an allowed prefix, and is not ours.
        raise ConfigError(f"{path}._target_: {target!r} is no class or function of {', '.join(ALLOWED_TARGETS)}")
    parameters = inspect.signature(found).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in node:
        if key not in RESERVED and key not in parameters:
            raise ConfigError(f"{path}.{key}: {target} has no such parameter{did_you_mean(str(key), parameters)}")
