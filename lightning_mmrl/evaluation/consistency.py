"""Checks by a closed list of cue phrases whether the thought of an answer supports its label."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal, get_args

from lightning_mmrl.errors import DataError

# Linear in the text, since it is a single character class.
_BETWEEN_WORDS = re.compile(r"[\W_]+")

Sense = Literal["picture", "sound"]
SENSES: tuple[Sense, ...] = get_args(Sense)
_SENSE_OF: Mapping[str, Sense] = {"face": "picture", "voice": "sound"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CueLexicon:
    """Phrases for the cue groups of each channel, and the label that a combination of groups implies.

    `cues` maps channel -> group -> phrases. `cue_to_label` maps a combination to a label; a combination is one group of
    each channel, joined by "+" in the order of the channels. A text shows a group if one of the group's phrases occurs
    as whole words, even if the text negates it ("no raised brows"). `senses` maps a channel to `picture` or `sound`,
    the sense that perceives it; by default, `face` is seen and `voice` is heard.

    Raises:
        DataError: A phrase is blank or part of a phrase of another group of its channel, a key of `cue_to_label`
            does not name one group of each channel, or `senses` names an unknown channel or sense.

    >>> lexicon = CueLexicon(
    ...     cues={"face": {"lowered": ["lowered brows"], "smile": ["smile"]}, "voice": {"fast": ["fast speech"]}},
    ...     cue_to_label={"lowered+fast": "angry", "smile+fast": "happy"},
    ... )
    >>> lexicon.implied_label("Lowered  brows, and fast speech.")
    'angry'
    >>> lexicon.implied_label("A smile over lowered brows, fast speech.") is None
    True
    """

    cues: Mapping[str, Mapping[str, Sequence[str]]]
    cue_to_label: Mapping[str, str]
    senses: Mapping[str, Sense] = field(default_factory=lambda: _SENSE_OF)
    _phrases: dict[str, dict[str, tuple[str, ...]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        phrases = {
            channel: {group: tuple(_padded(phrase) for phrase in listed) for group, listed in groups.items()}
            for channel, groups in self.cues.items()
        }
        for channel, groups in phrases.items():
            _check_phrases(channel, groups)
        for key in self.cue_to_label:
            named = key.split("+")
            if len(named) != len(phrases) or any(
                group not in known for group, known in zip(named, phrases.values(), strict=False)
            ):
                expected = "+".join(f"<{'|'.join(known)}>" for known in phrases.values())
                raise DataError(f"cue_to_label.{key} does not name one group of each channel; expected {expected}")
        for channel, sense in self.senses.items() if self.senses is not _SENSE_OF else ():
            if channel not in phrases or sense not in SENSES:
                raise DataError(
                    f"senses.{channel} is {sense!r}; map channels of cues ({', '.join(phrases)}) to picture or sound"
                )
        object.__setattr__(self, "_phrases", phrases)

    @classmethod
    def from_file(cls, path: Path | str) -> "CueLexicon":
        """Reads a `labels.json` with the keys `labels`, `cues` and `cue_to_label`, and `senses` if it is there.

        Raises:
            DataError: The file is missing or malformed, or implies a label that it does not list.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            labels, cues, cue_to_label = content["labels"], content["cues"], content["cue_to_label"]
            lexicon = cls(cues=cues, cue_to_label=cue_to_label, senses=content.get("senses", _SENSE_OF))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as JSON ({error})") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: needs labels, cues and cue_to_label, see CueLexicon ({error!r})") from error
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        for key, label in cue_to_label.items():
            if label not in labels:
                raise DataError(f"{path}: cue_to_label.{key} is {label!r}, which is not one of the labels {labels}")
        return lexicon

    def implied_label(self, think: str) -> str | None:
        """Returns the label that a thought's cues imply; None if it shows no or several groups of a channel."""
        shown = self.shown(think).values()
        if any(len(groups) != 1 for groups in shown):
            return None
        return self.cue_to_label.get("+".join(groups[0] for groups in shown))

    def shown(self, think: str) -> dict[str, list[str]]:
        """The groups of each channel that a thought shows."""
        text = _padded(think)
        return {
            channel: [group for group, phrases in groups.items() if any(phrase in text for phrase in phrases)]
            for channel, groups in self._phrases.items()
        }

    def named_senses(self, think: str) -> frozenset[Sense]:
        """The senses of which a thought names at least one cue."""
        found = (self.senses.get(channel) for channel, groups in self.shown(think).items() if groups)
        return frozenset(sense for sense in found if sense is not None)

    def supported_labels(self, think: str) -> dict[Sense, frozenset[str]]:
        """The labels that have a cue that the thought names, by sense; a channel with several groups supports none."""
        places = {channel: place for place, channel in enumerate(self._phrases)}
        found: dict[Sense, frozenset[str]] = dict.fromkeys(SENSES, frozenset())
        for channel, groups in self.shown(think).items():
            sense = self.senses.get(channel)
            if sense is not None and len(groups) == 1:
                keys = (key for key in self.cue_to_label if key.split("+")[places[channel]] == groups[0])
                found[sense] |= {self.cue_to_label[key] for key in keys}
        return found


def _padded(text: str) -> str:
    """The words of `text` in lower case, with one space between and around them, so that `in` matches whole words."""
    return f" {_BETWEEN_WORDS.sub(' ', unicodedata.normalize('NFKC', text).casefold()).strip()} "


def _check_phrases(channel: str, groups: Mapping[str, tuple[str, ...]]) -> None:
    for group, phrases in groups.items():
        if not phrases or any(not phrase.strip() for phrase in phrases):
            raise DataError(f"cues.{channel}.{group} is empty or has a blank phrase; give each group its phrases")
    for (first, ours), (second, theirs) in combinations(groups.items(), 2):
        for one in ours:
            for other in theirs:
                if one in other or other in one:
                    raise DataError(
                        f"cues.{channel}: {one.strip()!r} of {first!r} and {other.strip()!r} of {second!r} overlap; "
                        "one text would always show both"
                    )
