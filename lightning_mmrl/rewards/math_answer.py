"""Accuracy reward for mathematics: the answer equals the sample's solution, judged by math-verify."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from math_verify.errors import TimeoutException

from lightning_mmrl.errors import RewardError
from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.types.records import Completion, Sample

_EXTRACTION = (LatexExtractionConfig(), ExprExtractionConfig())
_NUM_REMEMBERED = 4096
MOST_UNITS = 2
"""Words of a unit beside a formula, such as square meters."""

# Linear in the text: repetitions stand beside characters that they cannot hold.
_STATED = re.compile(r"(?:[A-Za-z] ?= ?)?([-+0-9.,*/^() ]+)(\u00b0 ?[CF]?|%|[A-Za-z]*(?: [A-Za-z]+)?)\.?")
_SEVERAL = re.compile(r"[0-9.)] [0-9.(]|,(?![0-9]{3}(?![0-9]))|,[0-9]{3}[0-9]")
_LATEX_COMMAND = re.compile(r"\\[A-Za-z]+")
_LATEX_NAMES = re.compile(r"\\(?:text|mathrm|mathbf|operatorname|textbf|mbox) ?\{[^{}]*\}")
_WORD = re.compile(r"[A-Za-z']{2,}")
_BEFORE = frozenset(("the", "final", "answer", "is", "result", "value", "equals", "so", "thus", "hence", "it's", "it"))
_NO_UNIT = frozenset(
    (
        *("not", "no", "nor", "or", "and", "but", "never", "nope", "wrong", "false", "incorrect", "neither", "either"),
        *("except", "maybe", "isn't", "isnt", "mod", "div", "choose", "log", "ln", "sin", "cos", "tan", "exp", "sqrt"),
        *("i", "e", "x", "y", "z", "n", "a", "b", "t", "pi"),
    )
)
_NEGATIONS = ("\\neg", "\\lnot", "\\not", "\\sim", "\\lor", "\\vee", "\\land", "\\wedge")


@dataclass(frozen=True, slots=True, kw_only=True)
class MathAnswer:
    r"""1.0 if the `<answer>` is mathematically equal to the sample's solution, else 0.0.

    Numbers, fractions, expressions and LaTeX are read by math-verify, so that 0.5, 1/2 and \frac{1}{2} are one answer.
    The format may be broken elsewhere as long as there is one unambiguous `<answer>`, and it states one thing: a number
    or expression, with a name before it (`x = 7`, `The answer is 7`) and a unit behind it. Several of them, other words
    around it (`not 7`, `7 is wrong`), a chain of equations and more than `max_characters` characters earn nothing.
    Where the solution itself is several things, such as two roots, math-verify judges alone.

    math-verify sets an alarm signal and sympy can hang on hostile answers: run it with `rewards.num_workers` of at
    least 1, in processes that are killed at their deadline. Its own limit, `timeout_s`, must be shorter than that.

    **Deviations** from math-verify's metric: a timeout or a crash is a failed verifier, not a wrong answer; to it
    the last number of any sentence is the answer, so that `5 or 7` and `not 7` are 7.

    >>> reward = MathAnswer()
    >>> sample = Sample(id="sum", messages=(), solution="1/2")
    >>> reward(sample, Completion(text="<think>2 / 4</think><answer>0.5</answer>", num_tokens=9, truncated=False))
    1.0
    >>> reward(sample, Completion(text="<think>2 / 4</think><answer>0.25</answer>", num_tokens=9, truncated=False))
    0.0
    """

    timeout_s: int = 2
    max_characters: int = 256

    def __call__(self, sample: Sample, completion: Completion) -> float:
        """Scores one completion.

        Raises:
            RewardError: the sample's own solution is missing or no mathematics, or the verifier ran out of time.
        """
        if sample.solution is None or not _is_mathematics(sample.solution, self.timeout_s):
            raise RewardError(
                f"sample {sample.id!r} has the solution {sample.solution!r}, which math-verify cannot read; "
                "write a number, or LaTeX between dollar signs"
            )
        answer = scan(completion.text).answer
        if answer is None or len(answer) > self.max_characters:
            return 0.0
        if states_one_thing(sample.solution) and not states_one_thing(answer):
            return 0.0
        return 1.0 if _equal(sample.solution, answer, self.timeout_s) else 0.0


def states_one_thing(answer: str) -> bool:
    r"""True for one number or expression with nothing around it but a name, `the answer is`, and a unit.

    >>> [states_one_thing(answer) for answer in ("x = 7", "7 apples", r"\boxed{7}", "5 or 7", "not 7", "7 is wrong")]
    [True, True, True, False, False, False]
    """
    words = answer.strip().split()
    while words and words[0].lower().rstrip(":,") in _BEFORE:
        words = words[1:]
    text = " ".join(words)
    if "\\" in text or "$" in text:
        return _is_one_formula(text)
    stated = _STATED.fullmatch(text)
    if stated is None or _SEVERAL.search(stated[1].strip()):
        return False
    return not _NO_UNIT.intersection(stated[2].lower().split())


def _is_one_formula(text: str) -> bool:
    if text.count("$") not in (0, 2) or text.count("\\boxed") > 1 or text.count("=") > 1:
        return False
    if any(command in _NEGATIONS for command in _LATEX_COMMAND.findall(text)):
        return False
    inside = text.split("$")[1] if "$" in text else text
    named = _LATEX_NAMES.findall(inside)
    loose = _WORD.findall(_LATEX_COMMAND.sub(" ", _LATEX_NAMES.sub(" ", inside)))
    around = _WORD.findall(text.replace(inside, " ")) if "$" in text else []
    units = [word.lower() for name in named for word in _WORD.findall(name.partition("{")[2])] + around
    return not loose and len(units) <= MOST_UNITS and not _NO_UNIT.intersection(units)


def _is_mathematics(solution: str, timeout_s: int) -> bool:
    """True if it can be read as a whole; of a bare `x + 1` math-verify would read the 1 alone."""
    delimited = "$" in solution or "\\" in solution
    return (delimited or not any(map(str.isalpha, solution))) and bool(_read(solution, timeout_s))


@lru_cache(maxsize=_NUM_REMEMBERED)
def _equal(solution: str, answer: str, timeout_s: int) -> bool:
    """True if both are mathematics and equal; remembered, since the completions of a group repeat answers."""
    found = _read(answer, timeout_s)
    if not found:
        return False
    try:
        return verify(_read(solution, timeout_s), found, timeout_seconds=timeout_s, raise_on_error=True)
    except TimeoutException as error:  # a BaseException, which would end the worker
        raise RewardError(f"math-verify needed more than {timeout_s} s to compare {answer!r}") from error


@lru_cache(maxsize=_NUM_REMEMBERED)
def _read(text: str, timeout_s: int) -> list[Any]:
    """What math-verify reads, empty if nothing; bare LaTeX is put between dollar signs."""
    delimited = f"${text}$" if "\\" in text and "$" not in text else text
    try:
        return parse(
            delimited, _EXTRACTION, fallback_mode="no_fallback", parsing_timeout=timeout_s, raise_on_error=True
        )
    except TimeoutException as error:
        raise RewardError(f"math-verify needed more than {timeout_s} s to read {text!r}") from error
