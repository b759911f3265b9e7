"""Closed-set matcher from a free-text answer to one label, shared by rewards and evaluation."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.prompts.answers import readings, typeset, without_latex
from lightning_mmrl.types.records import Sample

DFEW7 = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
MAFW11 = (*DFEW7, "contemptuous", "anxious", "helpless", "disappointed")
RAVDESS8 = ("neutral", "calm", "happy", "sad", "angry", "fear", "disgust", "surprise")

# Words that name the same class. "calm" is a class of its own and is never read as neutral, nor "anxious" as fear.
EMOTION_WORDS = (
    ("angry", "anger"),
    ("happy", "happiness", "joy", "joyful"),
    ("sad", "sadness"),
    ("neutral", "neutrality"),
    ("fear", "fearful", "afraid", "scared"),
    ("surprise", "surprised"),
    ("disgust", "disgusted"),
    ("calm", "calmness"),
    ("contemptuous", "contempt"),
    ("disappointed", "disappointment"),
    ("helpless", "helplessness"),
    ("anxious", "anxiety"),
)

BEFORE_A_NUMBER = "-.,/\\&"
AFTER_A_NUMBER = "%\u2030/\\-&"
"""Punctuation that is part of a number: -3, .5, 3%, 3-, /3."""
PATTERN = ".*"
"""A search pattern, which is no label, whatever stands in it."""
ROOM = 50
"""Characters that a statement may have beside the longest label."""


def emotion_synonyms(labels: Sequence[str]) -> dict[str, str]:
    """The usual other words for the given labels, each mapped to its label.

    A group of words that holds two of the labels is left out: its other words would be ambiguous.

    >>> emotion_synonyms(["angry", "joy"])["happiness"]
    'joy'
    """
    synonyms = {}
    for words in EMOTION_WORDS:
        named = [label for label in labels if label in words]
        if len(named) == 1:
            synonyms |= {word: named[0] for word in words if word != named[0]}
    return synonyms


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMatcher:
    """Reads an answer as one label of a closed set, or as none.

    The answer must be one label or synonym as `normalized` reads it, by itself or in a bare statement (`The emotion is
    sad.`, see `readings`). Several labels, a negation, a hedge, a question and any word that a statement does not need
    match nothing, and neither do more than `max_characters` characters, or than the longest label and 50 if that is
    more. `synonyms` of None means `emotion_synonyms(labels)`.

    Raises:
        ConfigError: no label, two labels or synonyms that read the same, or a synonym of an unknown label.

    >>> matcher = LabelMatcher(labels=("angry", "sad"))
    >>> [matcher.match(answer) for answer in (" Anger. ", "She is angry", "angry or sad", "not angry", "angry?")]
    ['angry', 'angry', None, None, None]
    """

    labels: Sequence[str]
    synonyms: Mapping[str, str] | None = None
    max_characters: int = 64
    _lookup: dict[str, str] = field(init=False, repr=False, compare=False)
    _limit: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        labels = tuple(self.labels)
        synonyms = emotion_synonyms(labels) if self.synonyms is None else dict(self.synonyms)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "synonyms", synonyms)
        object.__setattr__(self, "_lookup", _lookup(labels, synonyms))
        longest = max(len(word) for word in (*labels, *synonyms))
        object.__setattr__(self, "_limit", max(self.max_characters, longest + ROOM))

    @classmethod
    def dfew7(cls) -> "LabelMatcher":
        """The seven classes of DFEW."""
        return cls(labels=DFEW7)

    @classmethod
    def mafw11(cls) -> "LabelMatcher":
        """The eleven classes of MAFW."""
        return cls(labels=MAFW11)

    @classmethod
    def ravdess8(cls) -> "LabelMatcher":
        """The eight classes of RAVDESS under DFEW's names; calm stays a class of its own."""
        return cls(labels=RAVDESS8)

    def match(self, answer: str) -> str | None:
        """The label that `answer` names, None if it names none or more than one."""
        if len(answer) > self._limit:
            return None
        label = self._lookup.get(normalized(answer))
        if label is not None:
            return label
        found = (self._named(rest) for lead, rest in readings(answer) if not self._in_words(lead))
        return next((label for label in found if label is not None), None)

    def _named(self, text: str) -> str | None:
        """The label that a text is, also with the same one once more in brackets: `fearful (fear)`."""
        label = self._lookup.get(normalized(text))
        word, opened, again = text.partition(" (")
        if label is None and opened and again.endswith(")"):
            label = self._lookup.get(normalized(word))
            return label if label == self._lookup.get(normalized(again)) else None
        return label

    def _in_words(self, lead: str) -> bool:
        """True if a word of a lead-in is a label by itself."""
        return any(normalized(word) in self._lookup for word in lead.split())

    def truth(self, sample: Sample) -> str:
        """The label of a sample, whose solution is read like an answer.

        Raises:
            DataError: Its solution is missing or names no label.
        """
        truth = None if sample.solution is None else self.match(sample.solution)
        if truth is None:
            raise DataError(
                f"sample {sample.id!r} has the solution {sample.solution!r}, which names none of {list(self.labels)}; "
                "correct the manifest or add a synonym"
            )
        return truth


def normalized(text: str) -> str:
    """Text as labels are compared: without typography, LaTeX wrappers, case and punctuation at both ends.

    Characters that change the meaning stay: a question mark, an exclamation mark in front, a sign or percent.

    >>> normalized(' "Angry." '), normalized("**-3.**"), normalized("(3)"), normalized("50 %"), normalized("!sad")
    ('angry', '-3', '3', '50 %', '!sad')
    """
    text = typeset(without_latex(typeset(text))).casefold()
    if PATTERN in text:
        return text
    start, end = 0, len(text)
    while start < end and _trimmed(text[start]) and text[start] != "!":
        start += 1
    while end > start and _trimmed(text[end - 1]):
        end -= 1
    before, after = text[:start].rstrip(), text[end:].lstrip()
    if start < end and text[start].isdigit() and before and before[-1] in BEFORE_A_NUMBER:
        start = len(before) - 1
    if end > start and text[end - 1].isdigit() and after and after[0] in AFTER_A_NUMBER:
        end = len(text) - len(after) + 1
    return text[start:end]


def is_blank(text: str) -> bool:
    """True for a text without a letter, a digit or a symbol, which no answer can be told by.

    >>> is_blank("?"), is_blank("-- ..."), is_blank("c++")
    (True, True, False)
    """
    return not any(unicodedata.category(character)[0] in "LNS" for character in text)


def _trimmed(character: str) -> bool:
    return character == " " or (unicodedata.category(character).startswith("P") and character not in "?\u00bf")


def _lookup(labels: tuple[str, ...], synonyms: Mapping[str, str]) -> dict[str, str]:
    if not labels:
        raise ConfigError("labels is empty; give at least one label")
    lookup: dict[str, str] = {}
    for word, label in [*((label, label) for label in labels), *synonyms.items()]:
        if label not in labels:
            raise ConfigError(f"synonyms.{word} is {label!r}, which is not one of the labels {list(labels)}")
        key = normalized(word)
        if is_blank(key):
            raise ConfigError(f"label {word!r} has no letter, digit or symbol to be told by; name the class in words")
        if key in lookup:
            raise ConfigError(f"{word!r} of {label!r} reads like a word of {lookup[key]!r}; remove one of them")
        lookup[key] = label
    return lookup
