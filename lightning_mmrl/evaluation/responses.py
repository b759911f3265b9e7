"""Computes statistics of responses to watch in training (lengths, reflection phrases); they are not rewards."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from lightning_mmrl.types.records import Completion

REFLECTION_PHRASES = (
    *("wait", "hmm", "let me check", "let me verify", "let me think again", "let me re-examine", "look again"),
    *("re-evaluate", "reevaluate", "re-check", "recheck", "double-check", "on second thought", "i made a mistake"),
    *("that is not right", "that's not right", "alternatively", "reconsider", "let me reconsider"),
)
"""English phrases of doubt and checking; their rate can rise while accuracy does not (arXiv:2505.22334)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseStats:
    """Statistics of N responses: mean and 95th percentile of the number of tokens, and shares of all responses."""

    num_responses: int
    length_mean: float
    length_p95: float
    truncated: float
    reflecting: float


def response_stats(
    completions: Sequence[Completion], phrases: Sequence[str] = REFLECTION_PHRASES
) -> ResponseStats | None:
    """Computes the statistics of completions, for example of a rollout table; None without completions.

    The percentile is the smallest length that at least 95 % of the responses do not exceed.

    >>> texts = ("Wait, the brows.", "A smile.")
    >>> stats = response_stats([Completion(text=text, num_tokens=len(text), truncated=False) for text in texts])
    >>> stats.length_mean, stats.length_p95, stats.reflecting
    (12.0, 16, 0.5)
    """
    if not completions:
        return None
    lengths = sorted(completion.num_tokens for completion in completions)
    return ResponseStats(
        num_responses=len(lengths),
        length_mean=fmean(lengths),
        length_p95=lengths[math.ceil(0.95 * len(lengths)) - 1],
        truncated=fmean(completion.truncated for completion in completions),
        reflecting=reflection_rate((completion.text for completion in completions), phrases),
    )


def reflection_rate(texts: Iterable[str], phrases: Sequence[str] = REFLECTION_PHRASES) -> float:
    """The share of texts with at least one of the phrases as whole words, in any case; 0 without texts.

    >>> reflection_rate(["Wait, no.", "She is waiting."])
    0.5
    """
    pattern = phrase_pattern(phrases)
    found = [pattern.search(text) is not None for text in texts]
    return sum(found) / len(found) if found else 0.0


def phrase_pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    """A pattern that finds any of the phrases as whole words, in any case.

    >>> phrase_pattern(["let me check"]).search("Let me check.") is not None
    True
    """
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, phrases))})(?!\w)", re.IGNORECASE)
