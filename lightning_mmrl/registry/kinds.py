"""Finds kinds of stages: a file of `app/kinds`, or a module of the user's own that the command line opened."""

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, cast, get_args

from lightning_mmrl.errors import FOREIGN_FAILURES, ConfigError, MmrlError
from lightning_mmrl.protocols.plain import StageKind
from lightning_mmrl.registry.own_code import how_to_open, is_opened
from lightning_mmrl.registry.targets import loaded
from lightning_mmrl.settings.rules import one_of
from lightning_mmrl.settings.stage import NodeSettings, StageSettings
from lightning_mmrl.suggestions import first_line, shown
from lightning_mmrl.types.records import HANDOFF, ArtifactType, Edge

KINDS = "lightning_mmrl.app.kinds"
MEMBERS = [name for name in vars(StageKind) if not name.startswith("_")]
"""Names of the attributes and methods of a kind."""


def kind_names() -> list[str]:
    """Returns the names of the kinds in the package."""
    folder = Path(__file__).parents[1].joinpath(*KINDS.split(".")[1:])
    return sorted(module.name for module in iter_modules([str(folder)]))


def kind_of(settings: NodeSettings, path: str) -> StageKind:
    """Returns the kind of a stage; `path` is the key of the stage.

    Raises:
        ConfigError: As in `kind_named`, or a kind of the user's own gives inputs or outputs that no stage can have.
    """
    kind = kind_named(settings.kind, f"{path}.kind")
    if "." in settings.kind:
        _check_edges(kind, settings, f"{path}.kind: the KIND of {settings.kind!r}")
    return kind


def kind_named(name: str, key: str) -> StageKind:
    """Returns the kind with a name, which is a file of `app/kinds` or the import path of a module.

    Raises:
        ConfigError: There is no such kind, the command line does not open its module, or the module has no `KIND` that
            can serve as one.
    """
    if "." not in name:
        one_of(name, key, kind_names())
        return cast(StageKind, loaded(f"{KINDS}.{name}.KIND", key))
    if not is_opened(name):
        raise ConfigError(f"{key} is {name!r}, which runs code that is not opened{how_to_open(name)}")
    module = loaded(name, key)
    kind = vars(module).get("KIND") if inspect.ismodule(module) else None
    if kind is None:
        raise ConfigError(f"{key} is {name!r}, which is no module with a KIND; name the module that defines it")
    _check_kind(kind, f"{key}: the KIND of {name!r}")
    return cast(StageKind, kind)


def _check_kind(kind: Any, what: str) -> None:
    """Refuses an object that lacks a part of `StageKind`, or whose settings cannot hold the keys of a stage."""
    if isinstance(kind, type):
        raise ConfigError(f"{what} is a class; write KIND = {kind.__name__}()")
    missing = [name for name in MEMBERS if name not in dir(kind)]
    if missing:
        raise ConfigError(f"{what} lacks {' and '.join(missing)}; add what `protocols.plain.StageKind` says of it")
    for name in MEMBERS:
        method = vars(StageKind)[name]
        if isinstance(method, property):
            continue
        given = list(inspect.signature(method).parameters)[1:]
        try:
            inspect.signature(getattr(kind, name)).bind(*given)
        except TypeError as error:
            raise ConfigError(
                f"{what} has a {name} that cannot be called as {name}({', '.join(given)}) ({first_line(error)}); "
                "correct it"
            ) from error
    _check_settings(kind.settings, what)


def _check_settings(settings: Any, what: str) -> None:
    if not isinstance(settings, type) or not issubclass(settings, NodeSettings):
        raise ConfigError(
            f"{what} has the settings {shown(settings)}; they must be a class derived from NodeSettings, or from "
            "StageSettings if its stages train"
        )
    if "__dataclass_fields__" not in vars(settings):
        raise ConfigError(
            f"{what} has the settings class {settings.__name__}, which is no dataclass; put @dataclass above it"
        )


def _check_edges(kind: StageKind, settings: NodeSettings, what: str) -> None:
    """Refuses inputs and outputs that are not of the form that `StageKind` says."""
    inputs = _mapping(kind.inputs, settings, f"{what}, by inputs(stage),")
    for name, edge in inputs.items():
        if not isinstance(edge, Edge):
            raise ConfigError(f"{what} has the input {name!r} of {shown(edge)}; it must be an Edge(stage, artifact)")
    outputs = _mapping(kind.outputs, settings, f"{what}, by outputs(stage),")
    types, folders = get_args(ArtifactType), {name.casefold(): name for name in outputs}
    for name, made in outputs.items():
        if made not in types:
            raise ConfigError(f"{what} makes {name!r} of the type {shown(made)!r}; choose one of {', '.join(types)}")
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(
                f"{what} makes {name!r}, which is no name of a folder; use letters, digits, '.', '_', '-'"
            )
        if folders[name.casefold()] != name:
            raise ConfigError(
                f"{what} makes {name!r} and {folders[name.casefold()]!r}, two outputs of one name on disks that do not "
                "tell capitals apart; rename one"
            )
        if (made == "weights") != (name == HANDOFF):
            raise ConfigError(f"{what} makes {name!r} of the type {made}; weights alone are named {HANDOFF!r}")
    if (HANDOFF in outputs) != isinstance(settings, StageSettings):
        raise ConfigError(
            f"{what} has the settings class {type(settings).__name__} and makes {', '.join(outputs) or 'nothing'}; a "
            f"kind whose settings derive from StageSettings makes {HANDOFF!r}, and no other does"
        )


def _mapping(method: Callable[[Any], Any], settings: NodeSettings, what: str) -> Mapping[str, Any]:
    """Returns the result of a kind's method, which must map names to values."""
    try:
        found = method(settings)
    except MmrlError:
        raise
    except FOREIGN_FAILURES as error:
        raise ConfigError(f"{what} raised {type(error).__name__}: {first_line(error)}; correct it") from error
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise ConfigError(f"{what} gives {shown(found)}; it must map names to values")
    return found
