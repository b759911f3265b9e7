r"""Finds the values that prose names: numbers, formulas between dollar signs, fractions in LaTeX and single letters."""

import re
from collections.abc import Iterator
from fractions import Fraction

# Linear in the text, since no repetition can match the character that ends it.
COPULA = re.compile(
    r"(?:^|(?<= ))(?:(?:(?:would|must|should|will|could|can|may|might|has to|have to) (?:only )?be)|"
    r"is|are|was|were|equals|isn't|aren't|=)(?= |$)|:(?= )",
    re.IGNORECASE,
)
VALUE = re.compile(
    r"\$[^$]+\$|\\[dt]?frac\{[^{}]{1,20}\}\{[^{}]{1,20}\}|-?[0-9]+(?:[.,][0-9]+)*(?:/[0-9]+)?|"
    r"(?<![A-Za-z'])(?-i:[A-H])(?![A-Za-z'])(?! (?!is |was |are )(?-i:[a-z]))|"
    r"\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b(?!s)",
    re.IGNORECASE,
)
_NUMERALS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_LATEX_FRACTION = re.compile(r"(-?)\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")
_NUMBER = re.compile(r"-?[0-9]{1,40}(?:\.[0-9]{1,40}|/0*[1-9][0-9]{0,40})?")


def values_of(text: str) -> Iterator[str]:
    r"""Yields the values of a text, equal ones in one form.

    >>> list(values_of(r"It is 0.5, \frac{1}{2} or two, and B is $x^2$."))
    ['1/2', '1/2', '2', 'B', 'x^2']
    """
    for found in VALUE.finditer(text):
        token = found[0].strip("$ ").replace(",", "")
        if token.casefold() in _NUMERALS:
            token = str(_NUMERALS.index(token.casefold()))
        token = "".join(_LATEX_FRACTION.sub(r"\1\2/\3", token).split())
        yield str(Fraction(token)) if _NUMBER.fullmatch(token) else token
