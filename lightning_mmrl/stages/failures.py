"""Stops training when too many rewards fail, since the policy would learn from the few that remain."""

from collections import Counter

from lightning_mmrl.errors import RewardError
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.types.batches import Scores

UNNAMED = "other"
"""Name in the counts for failures of no known component, such as a batch budget that was exceeded."""


def failed_components(scores: Scores) -> Counter[str]:
    """How many scores are invalid, by the name of the reward that failed."""
    return Counter(score.failed or UNNAMED for row in scores.details for score in row if not score.valid)


def refuse_failures(scores: Scores, max_rate: float, ranks: Ranks) -> None:
    """Stops if more than `max_rate` of an iteration's scores, over all ranks, are invalid; a collective.

    Raises:
        RewardError: More scores are invalid; the message counts them by reward and gives the first reason.
    """
    reasons = [score.reason for row in scores.details for score in row if not score.valid]
    shares = ranks.gather((scores.valid.numel(), failed_components(scores), reasons[:1]))
    total = sum(count for count, _, _ in shares)
    failed = sum((counted for _, counted, _ in shares), Counter[str]())
    if failed.total() <= max_rate * total:
        return
    first = next(reason for _, _, some in shares for reason in some)
    counts = ", ".join(f"{name} {count}" for name, count in failed.most_common())
    raise RewardError(
        f"{failed.total()} of {total} scores of an iteration are invalid ({counts}), more than "
        f"rewards.max_invalid_rate {max_rate:g} allows; the first: {first}; "
        "mend the data or the reward, or raise the limit"
    )
