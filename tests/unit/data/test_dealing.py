"""Samples are dealt out whole, equally many to each rank, and more evenly than in contiguous shares."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.data.dealing import EVEN, dealt
from lightning_mmrl.ops.packing import Budget, pack_groups


@st.composite
def batches(draw):
    num_ranks, size = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    lengths = draw(st.lists(st.integers(0, 5000), min_size=num_ranks * size, max_size=num_ranks * size))
    return lengths, num_ranks


def fullest(lengths, shares):
    return max(sum(lengths[place] for place in share) for share in shares)


def contiguous(lengths, num_ranks):
    size = len(lengths) // num_ranks
    return [list(range(first, first + size)) for first in range(0, len(lengths), size)]


@given(batches())
def test_every_sample_goes_to_one_rank_and_no_rank_gets_more_than_the_fullest_had(batch):
    lengths, num_ranks = batch
    shares = dealt(lengths, num_ranks)
    assert sorted(place for share in shares for place in share) == list(range(len(lengths)))
    assert {len(share) for share in shares} == {len(lengths) // num_ranks}
    assert all(share == sorted(share) for share in shares)
    assert fullest(lengths, shares) <= fullest(lengths, contiguous(lengths, num_ranks))


@given(batches())
def test_no_single_swap_with_the_fullest_rank_would_help(batch):
    lengths, num_ranks = batch
    shares = dealt(lengths, num_ranks)
    loads = [sum(lengths[place] for place in share) for share in shares]
    if max(loads) <= EVEN * sum(loads) / num_ranks:
        return
    most = loads.index(max(loads))
    for other in range(num_ranks):
        for give in shares[most]:
            for take in shares[other]:
                moved = lengths[give] - lengths[take]
                assert max(loads[most] - moved, loads[other] + moved) >= loads[most] or other == most


@pytest.mark.parametrize(("num_ranks", "bound"), [(2, 1.02), (8, 1.03), (16, 1.03)])
def test_ragged_prompts_are_dealt_evenly(num_ranks, bound):
    """Prompts of 500 to 6,000 tokens, four to a rank, over 50 batches: tokens of the fullest rank over the mean."""
    generator = random.Random(num_ranks)
    before, after, mean = 0.0, 0.0, 0.0
    for _ in range(50):
        lengths = [generator.randint(500, 6000) for _ in range(4 * num_ranks)]
        before += fullest(lengths, contiguous(lengths, num_ranks))
        after += fullest(lengths, dealt(lengths, num_ranks))
        mean += sum(lengths) / num_ranks
    assert before / mean > 1 + 2 * (bound - 1)
    assert after / mean < bound


def test_ranks_that_wait_for_the_fullest_make_fewer_microbatches():
    """With sharded weights every rank makes as many passes as the one with most microbatches."""

    def passes(lengths, shares):
        packed = [
            pack_groups([lengths[place] for place in share], [[200] * 8] * len(share), Budget(tokens=16_384))
            for share in shares
        ]
        return max(map(len, packed))

    generator = random.Random(0)
    before = after = 0
    for _ in range(50):
        lengths = [generator.randint(500, 6000) for _ in range(64)]
        before += passes(lengths, contiguous(lengths, 8))
        after += passes(lengths, dealt(lengths, 8))
    assert after < before
