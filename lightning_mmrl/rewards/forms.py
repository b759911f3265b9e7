r"""Other forms of the same answer: points without brackets, unions as lists, a value said twice, ratios as fractions.

Each form is read only where it cannot be another answer: `3, -2` is the point $(3, -2)$ only if the solution is a point
and no interval, and `6:8` is a fraction only if the solution is a ratio or a fraction.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from lightning_mmrl.rewards.formulas import bracketed, in_latex
from lightning_mmrl.rewards.mathematics import Quantity

_POINT_WORDS = re.compile(
    r"\b(?:coordinates?|points?|vertex|vertices|cent(?:er|re)|midpoint|intersections?|intersects?|"
    r"ordered pair|vector|focus)\b",
    re.IGNORECASE,
)
_INTERVAL_WORDS = re.compile(r"\b(?:intervals?|domain|range|inequality|increasing|decreasing)\b", re.IGNORECASE)
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_EITHER = re.compile(r"\bor\b", re.IGNORECASE)
_ALTERNATIVES = re.compile(r"\b(?:and|or)\b|[{}]", re.IGNORECASE)
_RATIO_WORDS = re.compile(
    r"\b(?:ratios?|scale|proportions?|odds|probability|chance)\b|\u6bd4|\u6982\u7387", re.IGNORECASE
)
"""Where the question asks for no ratio, 10:20 may be a time, or the score of a game."""
_AXES = ("x", "y", "z")
_EXCLUDED = re.compile(r"\b[a-z] ?(?:\\neq?(?![a-z])|\u2260|!=) ?(-?[0-9]+(?:\.[0-9]+|/[0-9]+)?)(?![0-9./^*+-])")
_FRACTION = re.compile(r"-?\\[dt]?frac ?\{ ?[0-9]+ ?\} ?\{ ?[0-9]+ ?\}|-?[0-9]+ ?/ ?[0-9]+")
_IRRATIONAL = re.compile(r"\\(?:sqrt|pi)\b")
_LONG_DECIMAL = re.compile(r"-?[0-9]*\.[0-9]{4,}")
_ROUNDED = re.compile(
    r"\b(?:round\w*|decimals?|nearest|approximat\w*|calculator|significant|hundredths?|tenths?)\b", re.IGNORECASE
)
_AT = re.compile(r"[A-Za-z]\(-?[0-9.]+\)")
_OF_X = re.compile(r"[a-zA-Z]\([a-z]\)")
_EQUATION_WORDS = re.compile(r"\b(?:equations?|line|formula)\b", re.IGNORECASE)
_VARIABLE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]")


def with_unions(text: str, wanted: Sequence[Quantity]) -> str:
    r"""Writes `x \neq 1` as a union of two intervals if the solution is a union.

    >>> with_unions(r"x \neq 1", (Quantity(formula=r"(-\infty, 1) \cup (1, \infty)"),))
    '(-\\infty, 1) \\cup (1, \\infty)'
    """
    if len(wanted) != 1 or "\\cup" not in wanted[0].formula:
        return text
    return _EXCLUDED.sub(r"(-\\infty, \1) \\cup (\1, \\infty)", text)


def in_form_of(
    wanted: Sequence[Quantity], stated: Sequence[Quantity], answer: str, question: str
) -> tuple[Quantity, ...]:
    """The quantities of an answer in the form of the solution's single one, if they are another form of it."""
    if len(wanted) != 1 or not stated:
        return tuple(stated)
    first, found = stated[0], bracketed(wanted[0].formula)
    if len(stated) > 1 and all(each == first for each in stated):
        return (first,)
    if found is not None and found[0] == "(" and found[2] == ")" and _is_point(found[1], question):
        return _as_point(found[1], stated, answer)
    if "\\cup" in wanted[0].formula and len(stated) > 1 and all(map(_is_interval, stated)):
        return (replace(first, formula=" \\cup ".join(each.formula for each in stated)),)
    return tuple(stated)


def _is_point(items: Sequence[str], question: str) -> bool:
    """True for a pair that is no interval: its numbers do not ascend, or the question asks for a point."""
    numbers = [float(item) for item in items if _NUMBER.fullmatch(item)]
    if len(numbers) == len(items) and any(one >= other for one, other in pairwise(numbers)):
        return True
    return _POINT_WORDS.search(question) is not None and _INTERVAL_WORDS.search(question) is None


def _as_point(items: Sequence[str], stated: Sequence[Quantity], answer: str) -> tuple[Quantity, ...]:
    given = tuple(stated)
    if len(given) == 1:
        found = bracketed(given[0].formula)
        if found is not None and (found[0], found[2]) == ("[", "]"):
            return (replace(given[0], formula=f"({', '.join(found[1])})"),)
        return given
    names = [each.name for each in given]
    if (
        len(given) != len(items)
        or _EITHER.search(answer)
        or any(each.unit or each.noun or bracketed(each.formula) for each in given)
    ):
        return given
    if sorted(map(str, names)) == list(_AXES[: len(items)]):
        given = tuple(sorted(given, key=lambda each: str(each.name)))
    elif any(names) or _ALTERNATIVES.search(answer):
        return given
    return (Quantity(formula=f"({', '.join(each.formula for each in given)})"),)


def _is_interval(quantity: Quantity) -> bool:
    found = bracketed(quantity.formula)
    return found is not None and found[0] in ("(", "[") and len(found[1]) == 2


def compared_ratios(wanted: str, given: str, question: str) -> list[tuple[str, str]] | None:
    r"""The pairs of formulas that must be equal where a question asks for a ratio, and one side is a ratio.

    The other side is a ratio or a number. None if the formulas are compared as they are.

    >>> [compared_ratios("3:4", given, "Find the ratio.") for given in ("6:8", "0.75", "3:0")]
    [[('(3) \\cdot (8)', '(6) \\cdot (4)')], [('\\frac{3}{4}', '0.75')], None]
    >>> compared_ratios("7", "7:1", "Find the ratio."), compared_ratios("10:20", "5:10", "What time is it?")
    (None, None)
    """
    if _RATIO_WORDS.search(question) is None:
        return None
    ours, theirs = _ratio(wanted), _ratio(given)
    if ours and theirs:
        if len(ours) != len(theirs) or any(float(item) == 0 for item in (*ours, *theirs)):
            return None
        rest = zip(ours[1:], theirs[1:], strict=True)
        return [(f"({ours[0]}) \\cdot ({other})", f"({theirs[0]}) \\cdot ({one})") for one, other in rest]
    if len(ours) == 2 and (_FRACTION.fullmatch(given) or _NUMBER.fullmatch(given)):
        return [(_divided(ours), given)] if float(ours[1]) else None
    if len(theirs) == 2 and _FRACTION.fullmatch(wanted):
        return [(wanted, _divided(theirs))] if float(theirs[1]) else None
    return None


def _ratio(formula: str) -> list[str]:
    """The numbers of a ratio; empty for any other formula."""
    found = bracketed(formula)
    is_ratio = found is not None and found[0] == ":" and all(_NUMBER.fullmatch(item) for item in found[1])
    return list(found[1]) if found is not None and is_ratio else []


def _divided(ratio: Sequence[str]) -> str:
    return f"\\frac{{{ratio[0]}}}{{{ratio[1]}}}"


def is_rounded(wanted: str, given: str, question: str) -> bool:
    r"""True for a long decimal number in place of a root or of pi, where the question does not ask for rounding.

    >>> is_rounded(r"6 \sqrt{3}", "10.3923048", "Find y."), is_rounded(r"6 \sqrt{3}", "10.3923048", "Round it.")
    (True, False)
    """
    is_long = _IRRATIONAL.search(wanted) is not None and _LONG_DECIMAL.fullmatch(given) is not None
    return is_long and _ROUNDED.search(question) is None


def names_differ(wanted: Quantity, given: Quantity, question: str) -> bool:
    r"""True if an answer names another thing: `y = 7` for `x = 7`, or `f(2)` where the question has no f(2).

    >>> [names_differ(Quantity(formula="7", name="y"), Quantity(formula="7", name=name), "") for name in ("x", "f(x)")]
    [True, False]
    """
    if given.name and given.name != wanted.name and _AT.fullmatch(given.name):
        spaced = r" ?".join(map(re.escape, given.name))
        if not re.search(rf"(?<![A-Za-z]){spaced}", question):
            return True
    if not wanted.name or not given.name or wanted.name == given.name:
        return False
    pair = (wanted.name, given.name)
    return not (("y" in pair) and any(_OF_X.fullmatch(name) for name in pair))


def as_equation(wanted: Quantity, given: Quantity, question: str) -> tuple[str, str] | None:
    """Both as whole equations, if the question asks for an equation and gives none, which an answer could repeat."""
    if "=" in question:
        return None
    if not wanted.name or not _VARIABLE.search(wanted.formula) or not _EQUATION_WORDS.search(question):
        return None
    if given.name and _OF_X.fullmatch(given.name):
        return None
    formula = given.formula if given.name is None else f"{given.name} = {given.formula}"
    if formula.count("=") != 1 or any(sign in formula for sign in ("<", ">", "\\le", "\\ge")):
        return None
    return f"{wanted.name} = {wanted.formula}", in_latex(formula)
