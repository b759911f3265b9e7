"""Emotion wheels, which group words of similar meaning; a wheel is a user's file or a small built-in list."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts.labels import normalized

SUFFIXES = (".yaml", ".yml", ".json")
FIX = "write one label per line, such as 'ecstatic: joy' or 'bittersweet: [joy, sadness]'"

BUILT_IN: Mapping[str, str] = {
    "joy": "happy happiness joy joyful glad cheerful delighted pleased excited amused content satisfied proud hopeful",
    "sadness": "sad sadness sorrowful unhappy depressed gloomy grieving heartbroken lonely disappointed hurt",
    "anger": "angry anger furious enraged annoyed irritated frustrated resentful hostile indignant mad",
    "fear": "fear fearful afraid scared frightened terrified anxious worried nervous panicked uneasy",
    "surprise": "surprise surprised astonished amazed shocked startled stunned",
    "disgust": "disgust disgusted repulsed revolted contemptuous contempt scornful",
    "calm": "calm neutral relaxed peaceful composed serene indifferent",
    "confusion": "confused confusion puzzled doubtful hesitant uncertain bewildered",
}
"""Maps each group to its words. This list is our own and small; a large vocabulary needs a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """Maps emotion words to their groups; words with the same groups count as the same emotion.

    Words are compared like labels (`normalized`).

    Raises:
        ConfigError: There are no words, or a word is blank or has no group.

    >>> wheel = Wheel(groups={"ecstatic": ["joy"], "bittersweet": ["joy", "sadness"]})
    >>> sorted(wheel.groups_of("Bittersweet!")), wheel.groups_of("bored")
    (['joy', 'sadness'], frozenset())
    """

    groups: Mapping[str, Sequence[str]]
    _of: Mapping[str, frozenset[str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.groups:
            raise ConfigError(f"the wheel has no labels; {FIX}")
        object.__setattr__(self, "_of", _checked((word, groups, word) for word, groups in self.groups.items()))

    @classmethod
    def built_in(cls) -> "Wheel":
        """Some seventy English words in eight groups."""
        return cls(groups={word: [group] for group, words in BUILT_IN.items() for word in words.split()})

    @classmethod
    def read(cls, path: str | Path) -> "Wheel":
        """Reads a YAML or JSON file that maps each label to its group or a list of its groups.

        Raises:
            ConfigError: The file cannot be read or an entry is unusable; the message names line or key, value and fix.
        """
        path = Path(path)
        if path.suffix not in SUFFIXES:
            raise ConfigError(f"wheel {path} has the suffix {path.suffix!r}; it must be {', '.join(SUFFIXES)}")
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"wheel {path} cannot be read ({error.strerror}); name a file by wheel") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"wheel {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
        try:
            entries = _from_json(text, path) if path.suffix == ".json" else _from_yaml(text, path)
        except RecursionError as error:
            raise ConfigError(f"wheel {path} is nested too deeply; {FIX}") from error
        if not entries:
            raise ConfigError(f"wheel {path} has no labels; {FIX}")
        _checked(entries)
        return cls(groups={word: groups for word, groups, _ in entries})

    def groups_of(self, word: str) -> frozenset[str]:
        """The groups of a word; empty for a word that is not on the wheel."""
        return self._of.get(normalized(word), frozenset())


def _checked(entries: Iterable[tuple[str, Any, str]]) -> dict[str, frozenset[str]]:
    """Maps normalized words to their groups; an entry is a word, its groups and its place in the file."""
    found: dict[str, frozenset[str]] = {}
    places: dict[str, str] = {}
    for word, groups, place in entries:
        key = normalized(word)
        if not key:
            raise ConfigError(f"{place}: the label {word!r} is blank; {FIX}")
        if key in found:
            raise ConfigError(f"{place}: the label {word!r} reads like that of {places[key]}; keep one of them")
        names = [groups] if isinstance(groups, str) else groups
        valid = isinstance(names, Sequence) and names and all(isinstance(name, str) and name.strip() for name in names)
        if not valid:
            raise ConfigError(f"{place}: the group of {word!r} is {groups!r}; {FIX}")
        found[key] = frozenset(normalized(name) or name for name in names)
        places[key] = place
    return found


def _from_json(text: str, path: Path) -> list[tuple[str, Any, str]]:
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except ValueError as error:
        raise ConfigError(f"wheel {path} is not valid JSON ({error})") from error
    if not text.lstrip().startswith("{"):
        raise ConfigError(f"wheel {path} holds a {type(pairs).__name__}; {FIX}")
    return [(word, groups, f"wheel {path}, key {word!r}") for word, groups in pairs]


def _from_yaml(text: str, path: Path) -> list[tuple[str, Any, str]]:
    """Reads YAML nodes, since these have line numbers, keep duplicate keys, and leave words such as `no` unchanged."""
    place = f"wheel {path}"
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" line {mark.line + 1}"
        raise ConfigError(f"wheel {path}{line} is not valid YAML ({getattr(error, 'problem', error)})") from error
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{place} holds a {root.tag.rpartition(':')[2]}; {FIX}")
    entries: list[tuple[str, Any, str]] = []
    for key, groups in root.value:
        word = key.value if isinstance(key, yaml.ScalarNode) else ""
        # None stands for a node that is neither a text nor a list of texts; it is refused later.
        plain = groups.value if isinstance(groups, yaml.ScalarNode) else None
        if isinstance(groups, yaml.SequenceNode):
            plain = [each.value if isinstance(each, yaml.ScalarNode) else None for each in groups.value]
        entries.append((word, plain, f"{place} line {key.start_mark.line + 1}"))
    return entries
