"""Rewards of a user's own."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Brevity:
    """Pays for few tokens."""

    scale: float = 1.0

    def __call__(self, sample, completion):
        return self.scale / (1 + completion.num_tokens)


def letters(sample, completion):
    """Pays for an odd sum of the bytes of an answer, which tells answers apart that mean nothing yet."""
    return float(sum(completion.text.encode()) % 2)
