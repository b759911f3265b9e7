"""Reads a text that lists words, such as several emotions; shared by rewards and evaluation."""

import re
import unicodedata

from lightning_mmrl.prompts.answers import doubts, readings
from lightning_mmrl.prompts.labels import normalized
from lightning_mmrl.prompts.wheel import Wheel

# Linear in the text, since repetitions are bounded.
_SEPARATOR = re.compile(r"[,;/|\n+]| and | & | as well as | plus ")
_NUMBERED = re.compile(r"(?<![^\s;,])\(?[0-9]{1,2}[.)](?![0-9])")
_PLAIN = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*")
_CHINESE_AND = re.compile("[\u548c\u4e0e\u53ca]")
UNKNOWN = "unknown "
"""Begins the group of a word that is not on the wheel."""
_MOST_WORDS = 8
"""An answer with more words is refused, unless the solution has as many."""


def listed_words(text: str, wheel: Wheel) -> list[str]:
    """Returns the words of a list, from the first reading that has only words of the wheel, or else from the last one.

    >>> listed_words("He feels sad and lonely.", Wheel.built_in())
    ['sad', 'lonely']
    """
    words: list[str] = []
    for lead, rest in readings(_NUMBERED.sub(";", unicodedata.normalize("NFKC", text)).replace("\n", ";")):
        if not lead:
            items = [item for item in map(normalized, _SEPARATOR.split(rest.casefold())) if item]
            words = []
            for item in items:
                joined = _CHINESE_AND.split(item)
                splits = not wheel.groups_of(item) and all(map(wheel.groups_of, joined))
                words += joined if splits else [item]
            if all(map(wheel.groups_of, words)):
                break
    return words


def named_groups(words: list[str], wheel: Wheel, num_wanted: int) -> frozenset[str] | None:
    """The groups of an answer's words, where each word that is not on the wheel is a group of its own.

    Args:
        words: The words, as `listed_words` reads them.
        wheel: The groups.
        num_wanted: Number of words of the solution.

    Returns:
        The groups; None if there is no word, if there are more than 8 words and more than in the solution, or if a word
        that is not on the wheel shows doubt or is no plain word.

    >>> sorted(named_groups(["sad", "seasick"], Wheel.built_in(), 1))
    ['sadness', 'unknown seasick']
    >>> named_groups(["sad", "not angry"], Wheel.built_in(), 1) is None
    True
    """
    unknown = [word for word in words if not wheel.groups_of(word)]
    # A plain word that is not on the wheel and expresses no doubt is a wrong guess.
    are_guesses = all(_PLAIN.fullmatch(word) is not None and not doubts(word) for word in unknown)
    if len(words) > max(_MOST_WORDS, num_wanted) or not are_guesses:
        return None
    return frozenset[str](f"{UNKNOWN}{word}" for word in unknown).union(*map(wheel.groups_of, words)) or None
