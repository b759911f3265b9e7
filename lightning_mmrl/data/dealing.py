"""Deals the samples of a batch to ranks, equally many to each, so that all get about equally many tokens."""

from collections.abc import Sequence

EVEN = 1.02
"""Tokens of the fullest rank over the mean, up to which a deal counts as even."""


def dealt(lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """The places in a batch that each rank gets, in ascending order.

    Each rank begins with its contiguous share, which it has read already. Then the fullest rank swaps one sample with
    an emptier one, by the swap that brings the two closest to each other, until the deal is even or no swap helps. So
    few samples move, and none if the shares are even as they are. The result depends on the lengths alone.

    Args:
        lengths: Tokens of each sample of the batch; their number is a multiple of `num_ranks`.
        num_ranks: Number of ranks.

    >>> dealt([900, 800, 100, 200], num_ranks=2)
    [[1, 3], [0, 2]]
    >>> dealt([500, 500, 500, 505], num_ranks=2)
    [[0, 1], [2, 3]]
    """
    size = len(lengths) // num_ranks
    shares = [list(range(first, first + size)) for first in range(0, len(lengths), size)]
    loads = [sum(lengths[place] for place in share) for share in shares]
    while max(loads) > EVEN * sum(loads) / num_ranks:
        fullest = loads.index(max(loads))
        for other in sorted(range(num_ranks), key=lambda rank: loads[rank]):
            gap = loads[fullest] - loads[other]
            swaps = [
                (abs(gap - 2 * (lengths[give] - lengths[take])), give, take)
                for give in shares[fullest]
                for take in shares[other]
            ]
            left, give, take = min(swaps)
            if left < gap:
                break
        else:
            break
        moved = lengths[give] - lengths[take]
        shares[fullest].remove(give)
        shares[other].remove(take)
        shares[fullest].append(take)
        shares[other].append(give)
        loads[fullest] -= moved
        loads[other] += moved
    return [sorted(share) for share in shares]
