"""Finds kinds of stages: a file of `app/kinds`, or a module of the user's own that the command line opened."""

from pathlib import Path
from pkgutil import iter_modules
from typing import cast

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.protocols.plain import StageKind
from lightning_mmrl.registry.own_code import how_to_open, is_opened
from lightning_mmrl.registry.targets import loaded
from lightning_mmrl.settings.rules import one_of
from lightning_mmrl.settings.stage import NodeSettings

KINDS = "lightning_mmrl.app.kinds"


def kind_names() -> list[str]:
    """The kinds that the package has."""
    folder = Path(__file__).parents[1].joinpath(*KINDS.split(".")[1:])
    return sorted(module.name for module in iter_modules([str(folder)]))


def kind_of(settings: NodeSettings, path: str) -> StageKind:
    """The kind of a stage; `path` is the key of the stage.

    Raises:
        ConfigError: As in `kind_named`.
    """
    return kind_named(settings.kind, f"{path}.kind")


def kind_named(name: str, key: str) -> StageKind:
    """The kind with a name: a file of the package, or the import path of a module.

    Raises:
        ConfigError: There is no such kind, or the command line does not open its module.
    """
    if "." not in name:
        one_of(name, key, kind_names())
        return cast(StageKind, loaded(f"{KINDS}.{name}.KIND", key))
    if not is_opened(name):
        raise ConfigError(f"{key} is {name!r}, which runs code that is not opened{how_to_open(name)}")
    found = loaded(f"{name}.KIND", key)
    if not isinstance(found, StageKind):
        raise ConfigError(
            f"{key} is {name!r}, whose KIND is no kind of stage; see lightning_mmrl.protocols.plain.StageKind"
        )
    return found
