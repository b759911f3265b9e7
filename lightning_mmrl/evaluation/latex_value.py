"""Computes the value of a short text in LaTeX: numbers, fractions, roots, powers, products and pi; runs no code."""

import math
import re
from collections.abc import Sequence

MAX_CHARACTERS = 200
_TOKEN = re.compile(r"\\[a-z]+|[0-9]+(?:\.[0-9]*)?|\.[0-9]+|\S")
_TIMES = ("*", "\\cdot", "\\times")
_OVER = ("/", "\\div", ":")
_FRACTIONS = ("\\frac", "\\dfrac", "\\tfrac")
_CLOSING = {"(": ")", "{": "}", "[": "]"}
_MOST = 1e9
"""Bound on bases and exponents, so that no power takes long."""


def value_of(text: str) -> float | None:
    r"""The value of a text; None if it is no number, or not finite.

    >>> [value_of(text) for text in (r"2\sqrt{4}", r"-\frac{1}{4}", r"\frac12", "7", "x", "1/0", r"\sqrt[3]{8}")]
    [4.0, -0.25, 0.5, 7, None, None, 2.0]
    """
    if len(text) > MAX_CHARACTERS:
        return None
    try:
        reading = _Reading(_TOKEN.findall(text))
        value = reading.sum()
        return value if reading.token is None and math.isfinite(value) else None
    except (ValueError, ArithmeticError):
        return None


class _Reading:
    """Reads tokens from left to right; each method computes what it reads, or raises ValueError."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = list(tokens)
        self._place = 0

    @property
    def token(self) -> str | None:
        """The next token; None at the end."""
        return self._tokens[self._place] if self._place < len(self._tokens) else None

    def sum(self) -> float:
        total = self._product()
        while self.token in ("+", "-"):
            sign = 1 if self._taken() == "+" else -1
            total += sign * self._product()
        return total

    def _product(self) -> float:
        total = self._signed()
        while self.token is not None and self.token not in ("+", "-", *_CLOSING.values()):
            if self.token in _OVER:
                self._taken()
                total /= self._signed()
            else:  # a sign of multiplication, or none
                if self.token in _TIMES:
                    self._taken()
                total *= self._signed()
        return total

    def _signed(self) -> float:
        if self.token in ("+", "-"):
            return -self._signed() if self._taken() == "-" else self._signed()
        base = self._atom()
        if self.token != "^":
            return base
        self._taken()
        return _power(base, self._signed())

    def _atom(self) -> float:
        token = self._taken()
        if token in ("(", "{"):
            return self._closed(token)
        if token == "\\pi":
            return math.pi
        if token in _FRACTIONS:
            over = self._argument()
            return over / self._argument()
        if token == "\\sqrt":
            degree = 2.0
            if self.token == "[":
                degree = self._closed(self._taken())
            return _power(self._argument(), 1 / degree)
        return float(token) if "." in token else int(token)  # ValueError for any other token

    def _argument(self) -> float:
        r"""What follows a command: a group, or one digit as in `\\frac12`."""
        token = self._taken()
        if token == "{":
            return self._closed(token)
        if len(token) > 1 and token.isdigit():
            self._tokens[self._place - 1] = token[1:]
            self._place -= 1
        return int(token[0])

    def _closed(self, opening: str) -> float:
        value = self.sum()
        if self._taken() != _CLOSING[opening]:
            raise ValueError(opening)
        return value

    def _taken(self) -> str:
        token = self.token
        if token is None:
            raise ValueError("the text ends early")
        self._place += 1
        return token


def _power(base: float, exponent: float) -> float:
    if abs(base) > _MOST or abs(exponent) > MAX_CHARACTERS:
        raise ValueError("a power is too large to compute")
    value = base**exponent
    if isinstance(value, complex):
        raise ValueError("a root of a negative number")
    return value
