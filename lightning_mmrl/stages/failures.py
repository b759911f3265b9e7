"""Training stops when too many rewards fail: it would learn from what is left."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from lightning_mmrl.errors import RewardError
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.types.batches import Scores
from lightning_mmrl.types.records import Score

UNNAMED = "other"
"""Counts failures of no known part, such as a batch budget that was exceeded."""


SQUARES = 2**20
"""How many squares of the largest reward that is used may be added up, as for the deviation of a batch."""


def finite_scores(table: Sequence[Sequence[Score]], dtype: torch.dtype) -> list[list[Score]]:
    """The scores, of which those that are too large for the type they are used in are invalid.

    Rewards are squared and added up in that type. One that a reward returned as a finite number, such as 1e39, may be
    infinite there; as any failure of a verifier it leaves its group.
    """
    largest = math.sqrt(torch.finfo(dtype).max / SQUARES)
    name = str(dtype).removeprefix("torch.")
    return [[_within(score, largest, name) for score in row] for row in table]


def _within(score: Score, largest: float, dtype: str) -> Score:
    # False for NaN as well.
    if not score.valid or all(abs(value) <= largest for value in (score.total, *score.components.values())):
        return score
    part = next((name for name, value in score.components.items() if not abs(value) <= largest), None)
    value = score.total if part is None else score.components[part]
    reason = f"{part or 'the total'}: {value:g} is too large for {dtype}, which bears {largest:.2g}"
    return replace(score, total=0.0, components={}, valid=False, reason=reason, failed=part)


def failed_parts(scores: Scores) -> Counter[str]:
    """How many scores are invalid, by the name of the reward that failed."""
    return Counter(score.failed or UNNAMED for row in scores.details for score in row if not score.valid)


def refuse_failures(scores: Scores, max_rate: float, ranks: Ranks) -> None:
    """Stops if more than `max_rate` of an iteration's scores, over all ranks, are invalid; a collective.

    Raises:
        RewardError: They are; it counts them by reward and gives the first reason.
    """
    reasons = [score.reason for row in scores.details for score in row if not score.valid]
    shares = ranks.gather((scores.valid.numel(), failed_parts(scores), reasons[:1]))
    total = sum(count for count, _, _ in shares)
    failed = sum((parts for _, parts, _ in shares), Counter[str]())
    if failed.total() <= max_rate * total:
        return
    first = next(reason for _, _, some in shares for reason in some)
    counts = ", ".join(f"{name} {count}" for name, count in failed.most_common())
    raise RewardError(
        f"{failed.total()} of {total} scores of an iteration are invalid ({counts}), more than "
        f"rewards.max_invalid_rate {max_rate:g} allows; the first: {first}; "
        "mend the data or the reward, or raise the limit"
    )
