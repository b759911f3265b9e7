"""The only place that turns `_target_` nodes into objects; keys are bound to the signature before anything is built."""

import inspect
import sys
from collections.abc import Mapping
from pkgutil import iter_modules, resolve_name
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from hydra.errors import HydraException
from hydra.utils import instantiate

from lightning_mmrl.errors import FOREIGN_FAILURES, ConfigError, MmrlError
from lightning_mmrl.machine import refusal
from lightning_mmrl.registry.allowed import INSTRUCTIONS, check_known
from lightning_mmrl.registry.own_code import is_opened
from lightning_mmrl.suggestions import WORDS, did_you_mean, first_line, nearest, offered, shown

RESERVED = frozenset({"_target_", *INSTRUCTIONS})
PLAIN = {int: int, float: (int, float), str: str, bool: bool}
UNIONS = (Union, UnionType)


def check_targets(tree: Any, path: str) -> None:
    """Imports every target below a node and binds its keys.

    Raises:
        ConfigError: A target is not registered or opened, does not exist, or a key is not one of its parameters.
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
    """Builds the object that a node describes; `more` are further keyword arguments.

    Raises:
        ConfigError: As in `check_targets`, or a target refuses its arguments.
    """
    check_targets(node, path)
    try:
        return instantiate(dict(node), _convert_="all", **more)
    except HydraException as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise ConfigError(f"{path}: {cause}") from error
        if isinstance(cause, MmrlError) or (cause is not None and refusal(cause) is not None):
            raise cause from error
        if isinstance(cause, TypeError | ValueError | OSError):
            raise ConfigError(f"{path}: {first_line(cause)}") from error
        raise


def optional(node: Any, path: str, default: Any) -> Any:
    """Builds the object that a node describes; returns the default for a null node."""
    return default if node is None else build(node, path)


def is_defined_at(found: Any, target: str) -> bool:
    """Whether an object is defined at or below the module that a target names, and not only imported there.

    An opened package holds what it imports, such as `mine.os.system`; `mine.Reward` may be defined in `mine.rewards`.
    """
    if inspect.ismethod(found) and isinstance(found.__self__, type):
        return is_defined_at(found.__self__, target.rpartition(".")[0])
    if isinstance(found, type) or inspect.isfunction(found):
        module, name = found.__module__, found.__qualname__
        place = target.removesuffix(f".{name}")
        return place != target and (module == place or module.startswith(f"{place}."))
    # A constant such as ARITHMETIC must be in a module itself, and its class in the same package or in ours.
    place = sys.modules.get(target.rpartition(".")[0])
    top = type(found).__module__.partition(".")[0]
    return place is not None and top in (target.partition(".")[0], "lightning_mmrl")


def loaded(target: str, key: str) -> Any:
    """Imports and returns the object that a target names; the import may run code of the user's own."""
    try:
        return resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        reason = f" ({first_line(error)})" if is_opened(target) else ""
        raise ConfigError(f"{key}: {target!r} cannot be imported{reason}{_near_target(target)}") from error
    except FOREIGN_FAILURES as error:
        raise ConfigError(f"{key}: {target!r} cannot be loaded: {type(error).__name__}: {first_line(error)}") from error


def _importable(target: str) -> Any:
    """Returns the object that a target names; None if it cannot be imported."""
    try:
        return resolve_name(target)
    except (ImportError, AttributeError, ValueError):
        return None


def _near_target(target: str) -> str:
    """Returns the end of a message with the nearest name in the nearest module that exists."""
    parent, _, name = target.rpartition(".")
    if not parent:
        return "; check the path"
    found = _importable(parent)
    if found is None:
        return _near_target(parent)
    known = [each for each in dir(found) if not each.startswith("_")]
    known += [module.name for module in iter_modules(getattr(found, "__path__", []))]
    close = nearest(name, known)
    return offered(f"{parent}.{each}" for each in close) if close else "; check the path"


def _check_target(node: Mapping[str, Any], path: str) -> None:
    target = str(node["_target_"])
    check_known(node["_target_"], f"{path}._target_")
    found = loaded(target, f"{path}._target_")
    if not callable(found) or not is_defined_at(found, target):
        raise ConfigError(
            f"{path}._target_: {target!r} is no class or function of that module; name it where it is defined"
        )
    parameters = inspect.signature(found).parameters
    more = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    for key, value in node.items():
        if key in parameters:
            _check_plain(value, parameters[key].annotation, f"{path}.{key}")
        elif key not in RESERVED and not more:
            hint = did_you_mean(str(key), [*parameters, *(RESERVED if str(key).startswith("_") else [])])
            raise ConfigError(f"{path}.{key}: {target} has no such parameter{hint}")


def _check_plain(value: Any, annotation: Any, key: str) -> None:
    """Refuses a value that a plain annotation excludes; of other annotations only null is checked."""
    if isinstance(annotation, str) or annotation in (Any, inspect.Parameter.empty):
        return
    kinds = get_args(annotation) if get_origin(annotation) in UNIONS else (annotation,)
    plain = [kind for kind in kinds if kind in PLAIN]
    if isinstance(value, Mapping) and "_target_" in value:
        return
    if value is None:
        fits = NoneType in kinds
    elif isinstance(value, str | bool | int | float):
        usual = [kind for kind in plain if kind is bool or not isinstance(value, bool)]
        fits = not plain or any(isinstance(value, PLAIN[kind]) for kind in usual)
    else:
        fits = len(plain) < sum(kind is not NoneType for kind in kinds)
    if not fits:
        words = [WORDS[kind] for kind in plain] or ["a value"]
        null = ["null"] if NoneType in kinds else []
        raise ConfigError(f"{key} is {shown(value)}; it must be {' or '.join([*words, *null])}")
