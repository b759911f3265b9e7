"""Accuracy reward for mathematics: math-verify decides whether the answer equals the sample's solution."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from math_verify.errors import TimeoutException

from lightning_mmrl.errors import RewardError
from lightning_mmrl.prompts.answers import doubts, question_of, without_assurance
from lightning_mmrl.prompts.reading import check_reading, find_answer
from lightning_mmrl.rewards.forms import (
    as_equation,
    compared_ratios,
    in_form_of,
    is_rounded,
    names_differ,
    with_unions,
)
from lightning_mmrl.rewards.formulas import bracketed
from lightning_mmrl.rewards.mathematics import Quantity, read_mathematics, verbatim, with_decimal_point
from lightning_mmrl.rewards.spelled import with_digits
from lightning_mmrl.rewards.units import Unit, unit_asked
from lightning_mmrl.rewards.wording import Named
from lightning_mmrl.types.records import Completion, Sample

_WITH_UNITS = LatexExtractionConfig()
_EXTRACTION = (replace(_WITH_UNITS, normalization_config=replace(_WITH_UNITS.normalization_config, units=False)),)
"""Units are read here, since math-verify drops any `m`; it gets only LaTeX, since it reads only parts of other text."""
_NUM_REMEMBERED = 4096
_RADIAN, _DEGREE = (("radian", 1),), (("degree", 1),)
_NUMBER = re.compile(r"-?[0-9]+(?:[.,][0-9]+)*")
_PLAIN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_RELATIONS = ("<", ">", "\\le", "\\ge", "\\lt", "\\gt", "\\in")


@dataclass(frozen=True, slots=True, kw_only=True)
class MathAnswer:
    r"""1.0 if the answer is mathematically equal to the sample's solution, else 0.0.

    `reading` says where the answer is, see `prompts.reading`.

    math-verify compares numbers, fractions and expressions, in LaTeX or not, so that 0.5, 1/2 and \frac{1}{2} are
    equal. The format may be broken elsewhere as long as there is one unambiguous answer. The answer must state one
    value, which may have a name (`x = 7`), a unit, and a bare statement around it (`The answer is 7.`, `She earns
    $35.`). The only words around it may be words of a statement, a counted noun (a plural, or a word of the sample's
    question or solution) and words that continue it (`7 apples left`). Any other word makes the answer earn 0, such as
    one that denies, hedges, compares or changes the value (`not 7`, `about 7`, `7 lakh`, `less 7`). An answer with more
    than `max_characters` characters, or with several numbers where the solution has one, earns 0 as well. A chain of
    equations is right if each side equals the solution. Lists and sets need all their elements in any order, pairs and
    intervals in order.

    A number may be spelled (`twelve`, `two thirds`, `2.5 thousand`, see `spelled`). Other forms of the same answer are
    equal where they cannot be another one (see `forms`): `3/4` or `6:8` for the ratio 3:4 that the question asks for,
    `3, -2` for the point (3, -2), `x \neq 1` for a union of intervals, `2x - y = -1` for the equation y = 2x + 1 that
    the question asks for and does not give, and the same value twice. A long decimal number is not equal to a root or
    to pi, unless the question asks for rounding.

    Units are converted (`0.05 m` is `5 cm`), and a unit of another kind is wrong. The unit may be missing in the
    answer or in the solution, since in published datasets the question usually names the unit. If the question asks for
    a unit (`in meters`), a solution without one is in this unit. Percent is a value: 50 %
    is 0.5, and 7 % is not 7; but a bare 50 is right for a solution of 50 %. The noun that the answer counts (`7
    apples`) must not contradict the noun of the solution.

    math-verify sets an alarm signal, and sympy can hang on hostile answers. So run this reward with
    `rewards.num_workers` of at least 1, in processes that are killed at their deadline. The time limit of math-verify,
    `timeout_s`, must be shorter than that deadline.

    **Deviations** from math-verify's metric: a timeout or a crash is a failed verifier, not a wrong answer. In
    math-verify, the last number of any sentence is the answer, so that `5 or 7` and `not 7` are 7, and units are
    dropped.

    Under the reading `prose`, where the solution is a number, the answer must end with one, in digits: `5 - 2 = 3` is
    right, and `5 - 2` is the question again.

    >>> reward = MathAnswer()
    >>> sample = Sample(id="sum", messages=(), solution="1/2")
    >>> reward(sample, Completion(text="<think>2 / 4</think><answer>0.5</answer>", num_tokens=9, truncated=False))
    1.0
    >>> reward(sample, Completion(text="<think>2 / 4</think><answer>0.25</answer>", num_tokens=9, truncated=False))
    0.0
    """

    timeout_s: int = 2
    max_characters: int = 256
    reading: str = "tag"

    def __post_init__(self) -> None:
        check_reading(self.reading)

    def __call__(self, sample: Sample, completion: Completion) -> float:
        """Scores one completion.

        Raises:
            RewardError: The sample's solution is missing or no mathematics, or the verifier ran out of time.
        """
        wanted = self.check_gold(sample)
        question = question_of(sample)
        answer = find_answer(completion, self.reading, question).text
        if answer is None or len(answer) > self.max_characters:
            return 0.0
        named = Named(question=question, solution=sample.solution or "")
        answer = without_assurance(answer)
        # In prose, only digits are searched for an earlier claim that contradicts the last one.
        text = answer if self.reading == "prose" else with_digits(answer)
        stated = read_mathematics(with_unions(text, wanted), named)
        stated = None if stated is None else in_form_of(wanted, stated, answer, question)
        if stated is not None and len(stated) != len(wanted):
            point = with_decimal_point(answer)
            stated = None if point is None else read_mathematics(point, named)
        if stated is None and wanted[0].is_verbatim and doubts(answer) == doubts(sample.solution or ""):
            stated = (verbatim(answer),)
        if stated is None or (self.reading == "prose" and not _is_worked_out(wanted, stated)):
            return 0.0
        return float(_same(_in_asked_unit(wanted, stated, question), stated, question, self.timeout_s))

    def check_gold(self, sample: Sample) -> tuple[Quantity, ...]:
        """The quantities of a sample's solution.

        Raises:
            RewardError: The solution is missing or no mathematics, or math-verify ran out of time.
        """
        wanted = None if sample.solution is None else _read_solution(sample.solution, self.timeout_s)
        if wanted is None:
            raise RewardError(
                f"sample {sample.id!r} has the solution {sample.solution!r}, which math-verify cannot read; "
                "write a number or an expression, also in LaTeX"
            )
        return wanted


def _is_worked_out(solution: Sequence[Quantity], stated: Sequence[Quantity]) -> bool:
    """False if the solution has only numbers, and the last side of an answer is a calculation."""
    if not all(_NUMBER.fullmatch(each.formula) for each in solution):
        return True
    return all(_NUMBER.fullmatch(each.formula.rpartition("=")[2].strip()) for each in stated)


def _read_solution(solution: str, timeout_s: int) -> tuple[Quantity, ...] | None:
    """The quantities of a solution, or its whole text if that is LaTeX for math-verify; None if it is unreadable."""
    stated = read_mathematics(solution, Named(solution=solution))
    if stated is not None and all(_is_readable(quantity.formula, timeout_s) for quantity in stated):
        return stated
    whole = verbatim(solution)
    delimited = "$" in solution or "\\" in solution
    return (whole,) if delimited and _read(whole.formula, timeout_s) else None


def _is_readable(formula: str, timeout_s: int) -> bool:
    """True if math-verify can read the formula, or each item in its brackets."""
    found = bracketed(formula)
    if found is None:
        return bool(_read(formula, timeout_s))
    return all(_is_readable(item, timeout_s) for item in found[1])


def _in_asked_unit(solution: tuple[Quantity, ...], stated: Sequence[Quantity], question: str) -> tuple[Quantity, ...]:
    """The solution in the unit that the question asks for, if it has a single value without unit and noun."""
    if len(solution) != 1 or solution[0].unit is not None or solution[0].noun:
        return solution
    unit = unit_asked(question)
    if unit is not None and unit.is_percent and all(each.unit is None for each in stated):
        return solution  # a bare 0.25 is not the 25 that is asked for in percent
    return (replace(solution[0], unit=unit),)


def _same(solution: Sequence[Quantity], stated: Sequence[Quantity], question: str, timeout_s: int) -> bool:
    """True if the quantities of the answer and of the solution are equal in some order."""
    remaining = list(stated)
    for wanted in solution:
        found = next((each for each in remaining if _same_quantity(wanted, each, question, timeout_s)), None)
        if found is None:
            return False
        remaining.remove(found)
    return not remaining


def _same_quantity(wanted: Quantity, given: Quantity, question: str, timeout_s: int) -> bool:
    equation = as_equation(wanted, given, question)
    if equation is not None:
        return _equal(*equation, timeout_s)
    if names_differ(wanted, given, question) or is_rounded(wanted.formula, given.formula, question):
        return False
    if wanted.noun and given.noun and wanted.noun.isdisjoint(given.noun):
        return False
    ratios = compared_ratios(wanted.formula, given.formula, question)
    if ratios is not None and wanted.unit is given.unit is None:
        return all(_equal(one, other, timeout_s) for one, other in ratios)
    return any(_same_formula(wanted.formula, formula, timeout_s) for formula in _converted(wanted, given))


def _converted(wanted: Quantity, given: Quantity) -> list[str]:
    """The possible formulas of the answer in the solution's unit; empty if the units are of different kinds."""
    ours, theirs = wanted.unit, given.unit
    if ours is not None and theirs is not None:
        if not ours.measures_like(theirs):
            return _turned(given.formula, ours, theirs)
        factor = theirs.factor / ours.factor
        return [given.formula if factor == 1 else _scaled(given.formula, factor)]
    if theirs is not None:
        return [_scaled(given.formula, Fraction(1, 100))] if theirs.is_percent else [given.formula]
    if ours is not None and given.noun:
        return []
    percent = ours is not None and ours.is_percent
    return [given.formula, _scaled(given.formula, Fraction(100))] if percent else [given.formula]


def _turned(formula: str, ours: Unit, theirs: Unit) -> list[str]:
    """An angle in the other unit of angles; empty if the units are no angles."""
    kinds = (tuple(ours.powers.items()), tuple(theirs.powers.items()))
    if kinds == (_RADIAN, _DEGREE):
        return [f"\\frac{{({formula}) \\cdot \\pi}}{{180}}"]
    return [f"\\frac{{({formula}) \\cdot 180}}{{\\pi}}"] if kinds == (_DEGREE, _RADIAN) else []


def _scaled(formula: str, factor: Fraction) -> str:
    """The formula times a factor; a plain number exactly, since a float may differ from it."""
    if _PLAIN.fullmatch(formula):
        exact = Fraction(formula) * factor
        return f"\\frac{{{exact.numerator}}}{{{exact.denominator}}}"
    return f"\\frac{{({formula}) \\cdot {factor.numerator}}}{{{factor.denominator}}}"


def _same_formula(wanted: str, given: str, timeout_s: int) -> bool:
    """Compares brackets item by item, relations as a whole, and each side of a chain of equations."""
    ours, theirs = bracketed(wanted), bracketed(given)
    if ours is not None and theirs is not None:
        return (ours[0], ours[2], len(ours[1])) == (theirs[0], theirs[2], len(theirs[1])) and all(
            _same_formula(one, other, timeout_s) for one, other in zip(ours[1], theirs[1], strict=True)
        )
    related = [any(sign in formula for sign in _RELATIONS) for formula in (wanted, given)]
    if any(related):
        return (related[0] or ours is not None) and _equal(wanted, given, timeout_s)
    if (ours is None) != (theirs is None):
        return False
    if "=" in wanted:
        return _equal(wanted, given, timeout_s)
    return all(side.strip() and _equal(wanted, side.strip(), timeout_s) for side in given.split("="))


@lru_cache(maxsize=_NUM_REMEMBERED)
def _equal(solution: str, answer: str, timeout_s: int) -> bool:
    """True if both are mathematics and equal; cached, since the completions of a group repeat answers."""
    found = _read(answer, timeout_s)
    if not found:
        return False
    try:
        return verify(
            _read(solution, timeout_s),
            found,
            allow_set_relation_comp=True,
            timeout_seconds=timeout_s,
            raise_on_error=True,
        )
    except TimeoutException as error:  # it is a BaseException and would end the worker
        raise RewardError(f"math-verify needed more than {timeout_s} s to compare {answer!r}") from error


@lru_cache(maxsize=_NUM_REMEMBERED)
def _read(formula: str, timeout_s: int) -> list[Any]:
    """Result of math-verify's parser; empty if it reads no mathematics."""
    try:
        return parse(
            f"${formula}$", _EXTRACTION, fallback_mode="no_fallback", parsing_timeout=timeout_s, raise_on_error=True
        )
    except TimeoutException as error:
        raise RewardError(f"math-verify needed more than {timeout_s} s to read {formula!r}") from error
