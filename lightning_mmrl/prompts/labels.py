"""Matches a free-text answer to one label of a closed set; shared by rewards and evaluation."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.prompts.answers import readings, typeset, without_latex
from lightning_mmrl.types.records import Sample

DFEW7 = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
MAFW11 = (*DFEW7, "contemptuous", "anxious", "helpless", "disappointed")
RAVDESS8 = ("neutral", "calm", "happy", "sad", "angry", "fear", "disgust", "surprise")

# Words of the same class. "calm" is a separate class and not the same as neutral, nor is "anxious" the same as fear.
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
"""Mark of a search pattern; a text that contains it is never a label."""
ROOM = 50
"""Characters that a statement may have in addition to the longest label."""


def emotion_synonyms(labels: Sequence[str]) -> dict[str, str]:
    """Maps the usual synonyms of the given labels to their labels.

    A group of synonyms with two of the labels is left out, because its other words would be ambiguous.

    >>> emotion_synonyms(["angry", "joy"])["happiness"]
    'joy'
    """
    synonyms = {}
    for words in EMOTION_WORDS:
        named = [label for label in labels if label in words]
        if len(named) == 1:
            synonyms |= {word: named[0] for word in words if word != named[0]}
    return synonyms


def names_emotions(labels: Sequence[str]) -> bool:
    """Whether any of the labels is an emotion word.

    >>> names_emotions(["0", "happy"]), names_emotions(["circle", "square"]), names_emotions([])
    (True, False, False)
    """
    known = {word for words in EMOTION_WORDS for word in words}
    return any(label.casefold() in known for label in labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMatcher:
    """Reads an answer as one label of a closed set, or as none.

    The answer must be a single label or synonym after normalization (see `normalized`), by itself or in a bare
    statement (`The emotion is sad.`, see `readings`). An answer matches nothing if it has several labels, a negation, a
    hedge, a question, or any word that a statement does not need. It also matches nothing if it is longer than
    `max_characters` and longer than the longest label plus 50 characters. With `synonyms` None,
    `emotion_synonyms(labels)` are used.

    Raises:
        ConfigError: There are no labels, two labels or synonyms are equal after normalization, or a synonym has an
            unknown label.

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
        if not labels:
            raise ConfigError("labels is empty; give at least one label")
        synonyms = emotion_synonyms(labels) if self.synonyms is None else dict(self.synonyms)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "synonyms", synonyms)
        lookup: dict[str, str] = {}
        for word, label in [*((label, label) for label in labels), *synonyms.items()]:
            if label not in labels:
                raise ConfigError(f"synonyms.{word} is {label!r}, which is not one of the labels {list(labels)}")
            key = normalized(word)
            if is_blank(key):
                raise ConfigError(
                    f"label {word!r} has no letter, digit or symbol to be told by; name the class in words"
                )
            if key in lookup:
                raise ConfigError(f"{word!r} of {label!r} reads like a word of {lookup[key]!r}; remove one of them")
            lookup[key] = label
        object.__setattr__(self, "_lookup", lookup)
        longest = max(len(word) for word in (*labels, *synonyms))
        object.__setattr__(self, "_limit", max(self.max_characters, longest + ROOM))

    def match(self, answer: str) -> str | None:
        """The label that `answer` names; None if it names none or several."""
        if len(answer) > self._limit:
            return None
        label = self._lookup.get(normalized(answer))
        if label is not None:
            return label
        for lead, rest in readings(answer):
            if not any(normalized(word) in self._lookup for word in lead.split()):
                label = self._named(rest)
                if label is not None:
                    return label
        return None

    def _named(self, text: str) -> str | None:
        """The label that the whole text names, possibly repeated in brackets: `fearful (fear)`."""
        label = self._lookup.get(normalized(text))
        word, opened, again = text.partition(" (")
        if label is None and opened and again.endswith(")"):
            label = self._lookup.get(normalized(word))
            return label if label == self._lookup.get(normalized(again)) else None
        return label

    def truth(self, sample: Sample) -> str:
        """The label of a sample; its solution is read like an answer.

        Raises:
            DataError: The solution is missing or names no label.
        """
        truth = None if sample.solution is None else self.match(sample.solution)
        if truth is None:
            raise DataError(
                f"sample {sample.id!r} has the solution {sample.solution!r}, which names none of {list(self.labels)}; "
                "correct the manifest or add a synonym"
            )
        return truth


def normalized(text: str) -> str:
    """Normalizes a text for comparing labels: no typography, LaTeX wrappers, case, or punctuation at both ends.

    Characters that change the meaning stay: a question mark, a leading exclamation mark, a sign of a number, percent.

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
    """True for a text without any letter, digit or symbol, so that no answer can name it.

    >>> is_blank("?"), is_blank("-- ..."), is_blank("c++")
    (True, True, False)
    """
    return not any(unicodedata.category(character)[0] in "LNS" for character in text)


def _trimmed(character: str) -> bool:
    return character == " " or (unicodedata.category(character).startswith("P") and character not in "?\u00bf")
