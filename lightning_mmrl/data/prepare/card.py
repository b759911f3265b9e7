"""Cards of published sets: labels, counts, options and citation, one YAML beside the file that reads the set."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_mmrl.data.prepare.rows import Reader
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.suggestions import did_you_mean

_FOLDER = Path(__file__).parent
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A choice that a user makes for one set: a flag of its command.

    Attributes:
        help: What the choice decides.
        choices: The allowed values; none for a path.
        default: The value without the flag; with None, the flag is required unless `is_path`.
        is_path: True if the value is a path.
    """

    help: str
    choices: Sequence[str] = ()
    default: str | None = None
    is_path: bool = False

    @property
    def required(self) -> bool:
        return self.default is None and not self.is_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """A part of a set that has a protocol of its own.

    Attributes:
        help: What the part holds.
        labels: Label by the name that the originals use; empty for an open vocabulary.
        counts: Published counts that the protocol needs, by name; None where no count is known.
        also: Further published counts, which are compared but which the protocol does not need.
    """

    help: str
    labels: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int | None] = field(default_factory=dict)
    also: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCard:
    """A published set.

    Attributes:
        name: The set's name in commands.
        title: Its name in full.
        citation: Where the set, its counts and its folds were published.
        license: The terms in a sentence; a user has to obtain the files.
        layout: The originals that are read, for `--help`.
        by_speaker: True if the protocol keeps the clips of a speaker in one split.
        subsets: Its parts; the first one is the default.
        options: Its own flags by name.
    """

    name: str
    title: str
    citation: str
    license: str
    layout: str
    by_speaker: bool
    subsets: Mapping[str, Subset]
    options: Mapping[str, Option]

    @property
    def reader(self) -> Reader:
        """The function that reads the originals."""
        return importlib.import_module(f"{__package__}.{self.name}").read

    def chosen(self, given: Mapping[str, str | None]) -> dict[str, str | None]:
        """The values of all options, given or by default.

        Raises:
            ConfigError: An option is none of the set's, has another value than its choices, or is missing.
        """
        for key in given:
            if key not in self.options:
                raise ConfigError(f"set {self.name} has no option {key!r}{did_you_mean(key, list(self.options))}")
        values = {key: given.get(key, option.default) for key, option in self.options.items()}
        for key, option in self.options.items():
            if (values[key] is None and option.required) or (option.choices and values[key] not in option.choices):
                raise ConfigError(
                    f"option {key} of set {self.name} is {values[key]}; give one of {', '.join(option.choices)}"
                )
        return values


def card_names() -> list[str]:
    """The sets that have a card."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def read_card(name: str) -> SetCard:
    """The card of a set.

    Raises:
        ConfigError: There is no such set.
    """
    if name not in card_names():
        raise ConfigError(f"no set {name!r} is known{did_you_mean(name, card_names())}")
    content: dict[str, Any] = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    subsets = {key: _subset(value) for key, value in content.pop("subsets").items()}
    options = {key: Option(**value) for key, value in content.pop("options", {}).items()}
    return SetCard(name=name, **content, subsets=subsets, options=options)


def _subset(content: Mapping[str, Any]) -> Subset:
    counts = {
        key: {name: None if number == UNKNOWN else int(number) for name, number in content.get(key, {}).items()}
        for key in ("counts", "also")
    }
    labels = {str(key): label for key, label in content.get("labels", {}).items()}
    return Subset(help=content["help"], labels=labels, counts=counts["counts"], also=counts["also"])
