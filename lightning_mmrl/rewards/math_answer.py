"""Accuracy reward for mathematics: the answer equals the sample's solution, judged by math-verify."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class MathAnswer:
    r"""1.0 if the `<answer>` is mathematically equal to the sample's solution, else 0.0.

    Numbers, fractions, expressions and LaTeX are read by math-verify, so that 0.5, 1/2 and \frac{1}{2} are one answer.
    The format may be broken elsewhere as long as there is one unambiguous `<answer>`. Of a sentence the last number
    counts, so listing several earns nothing more; an answer of more than `max_characters` characters earns nothing.

    math-verify sets an alarm signal and sympy can hang on hostile answers: run it with `rewards.num_workers` of at
    least 1, in processes that are killed at their deadline. Its own limit, `timeout_s`, must be shorter than that.

    **Deviations** from math-verify's metric: a timeout or a crash is a failed verifier, not a wrong answer.

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
        return 1.0 if _equal(sample.solution, answer, self.timeout_s) else 0.0


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
