"""Repetition penalty: the share of repeated n-grams."""

from dataclasses import dataclass

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.types.records import Completion, Sample

PIECE = 8
"""Longer words are cut into pieces of this many characters, so that repetition without spaces counts as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """-max_penalty * (1 - distinct n-grams / n-grams), over case-folded words; 0 for fewer than n words.

    This is the repetition penalty of arXiv:2502.03373, relative to the length of the text. Time and memory are linear.

    **Deviations** from the paper, which penalizes tokens: it counts words and needs no tokenizer. Words of more than
    eight characters count as several pieces, so that a policy cannot avoid the penalty by omitting spaces.

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
        return -self.max_penalty * repeated_share(completion.text, self.n)


def repeated_share(text: str, n: int) -> float:
    """The share of n-grams of a text that repeat an earlier one, over case-folded words; 0 for fewer than n words.

    >>> repeated_share("so so so so so", 2)
    0.75
    """
    words = text.casefold().split()
    pieces = [word[start : start + PIECE] for word in words for start in range(0, len(word), PIECE)]
    total = len(pieces) - n + 1
    if total < 1:
        return 0.0
    distinct = len(set(zip(*(pieces[start : start + total] for start in range(n)), strict=True)))
    return 1.0 - distinct / total
