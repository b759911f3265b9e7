r"""Writes the numbers that an answer spells out as digits: `two hours`, `1.25 thousand`, `3 to 4`.

Only a text that is a number beyond doubt is rewritten, and only in answers, not in solutions. All other number words
stay, and `wording` refuses them.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from lightning_mmrl.prompts.answers import word_set

_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_ONES = {name: number for number, name in enumerate(_UNITS)}
_DECADES = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_TENS = {name: 10 * number for number, name in enumerate(_DECADES, 2)}
_ORDINALS = ("third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_PARTS = {
    **{"half": 2, "halves": 2, "quarter": 4, "quarters": 4},
    **{f"{name}{plural}": number for number, name in enumerate(_ORDINALS, 3) for plural in ("", "s")},
}
_NUMBER_WORDS = _ONES.keys() | _TENS.keys() | _SCALES.keys()
_CARDINAL = "|".join(sorted(_NUMBER_WORDS, key=len, reverse=True))
_RUN = re.compile(rf"\b(?:{_CARDINAL})(?:(?:[ -]| and )(?:{_CARDINAL}))*\b", re.IGNORECASE)
_PART = re.compile(
    rf"\b(?:(a|{_CARDINAL})[ -])?({'|'.join(sorted(_PARTS, key=len, reverse=True))})\b(?! (?:of|a|an|past|as|dozen)\b)",
    re.IGNORECASE,
)
_NO_NUMBER_AFTER = word_set("the this that which no right only every each")
"""After these words, "one" is a pronoun: `the right one`."""
_NUMBER = re.compile(r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+")
_SCALED = re.compile(
    r"(?<![0-9.,/^(:])([0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?) (hundred|thousand|million|billion)\b", re.IGNORECASE
)
_RATIO = re.compile(
    r"([0-9]+(?:\.[0-9]+)?) (?:to|(?:in|out of)(?= [0-9.]+[ .$}*]*$)) ([0-9]+(?:\.[0-9]+)?)(?![0-9.]*[ ]*[%/^:*+-])"
)
_RANGE = re.compile(r"\b(?:from|between|range|ranges)\b|[-+/^:=]", re.IGNORECASE)


def with_digits(text: str) -> str:
    """The text with its spelled numbers in digits; a text with digits keeps all other number words.

    >>> [with_digits(text) for text in ("minus twenty-five", "two hours", "1.25 thousand", "3 to 4", "two thirds")]
    ['minus 25', '2 hours', '1250', '3:4', '2/3']
    >>> [with_digits(text) for text in ("7 and a half", "five six", "from 3 to 4", "the right one")]
    ['7 and a half', 'five six', 'from 3 to 4', 'the right one']
    """
    if re.search("[0-9]", text) is None:
        text = _cardinals(_PART.sub(_part, text))
    elif len(_NUMBER.findall(text)) == 1:
        text = _SCALED.sub(lambda found: str(Fraction(found[1].replace(",", "")) * _SCALES[found[2].casefold()]), text)
    if len(_NUMBER.findall(text)) == 2 and _RANGE.search(text) is None:
        text = _RATIO.sub(r"\1:\2", text)
    return text


def _part(found: re.Match[str]) -> str:
    """A part of one, such as a half; an ordinal without a number before it stays."""
    count, part = (found[1] or "").casefold(), found[2].casefold()
    if count not in ("", "a") and count not in _ONES:
        return found[0]
    if not count and part != "half":
        return found[0]
    return f"{_ONES.get(count, 1)}/{_PARTS[part]}"


def _cardinals(text: str) -> str:
    """The text with each run of number words as a number."""

    def replaced(found: re.Match[str]) -> str:
        before = text[: found.start()].split()
        is_pronoun = found[0].casefold() == "one" and bool(before) and before[-1].casefold() in _NO_NUMBER_AFTER
        value = None if is_pronoun else _value([word.casefold() for word in re.findall("[A-Za-z]+", found[0])])
        return found[0] if value is None else str(value)

    return _RUN.sub(replaced, text)


def _value(words: Sequence[str]) -> int | None:
    """The number that the words spell; None if they are several numbers, such as "five six"."""
    total, group, last = 0, 0, 10**12
    for word in (word for word in words if word != "and"):
        if word in _SCALES:
            scale = _SCALES[word]
            if not group or (total and scale >= last):
                return None
            if scale == 100:
                if group > 9:
                    return None
                group *= 100
            else:
                total, group, last = total + group * scale, 0, scale
            continue
        number = _ONES.get(word, _TENS.get(word, 0))
        room = 100 if group % 100 == 0 else 10 if group % 10 == 0 and group % 100 >= 20 and 0 < number < 10 else 0
        if number >= room or (number == 0 and len(words) > 1):
            return None
        group += number
    return total + group
