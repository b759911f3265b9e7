"""Repetition penalty: the share of n-grams that were there before."""

from collections.abc import Iterator
from dataclasses import dataclass

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.types.records import Completion, Sample

PIECE = 8
"""Longer words are cut into pieces of so many characters: text without spaces repeats itself too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """-max_penalty * (1 - distinct n-grams / n-grams), over case-folded words; 0 for fewer than n words.

    The repetition penalty of arXiv:2502.03373, as a share of the text. Time and memory are linear.

    **Deviations** from the paper, which penalizes tokens: words, so that it needs no tokenizer; words of more than
    eight characters count as several pieces, so that leaving out spaces does not escape it.

    >>> reward = Repetition(n=2)
    >>> sample = Sample(id="clip", messages=())
    >>> reward(sample, Completion(text="A smile and open eyes.", num_tokens=6, truncated=False))
    0.0
    >>> reward(sample, Completion(text="so so so so so", num_tokens=5, truncated=False))
    -0.75
    """

    n: int = 4
    max_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"n is {self.n}; it must be at least 1")
        if self.max_penalty <= 0:
            raise ConfigError(f"max_penalty is {self.max_penalty}; it must be above 0")

    def __call__(self, sample: Sample, completion: Completion) -> float:
        pieces = list(_pieces(completion.text.casefold()))
        total = len(pieces) - self.n + 1
        if total < 1:
            return 0.0
        distinct = len(set(zip(*(pieces[start : start + total] for start in range(self.n)), strict=True)))
        return self.max_penalty * (distinct / total - 1.0)


def _pieces(text: str) -> Iterator[str]:
    for word in text.split():
        for start in range(0, len(word), PIECE):
            yield word[start : start + PIECE]
