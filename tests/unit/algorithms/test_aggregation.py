import math

import pytest
import torch

from lightning_mmrl.algorithms.losses.aggregation import ConstantLength, SequenceMean, TokenMean

LOSSES = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [100.0, 100.0, 100.0]])
MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
AGGREGATIONS = [TokenMean(), SequenceMean(), ConstantLength(max_tokens=8)]


@pytest.mark.parametrize(
    ("aggregation", "denominator", "loss"),
    [(AGGREGATIONS[0], 4.0, 16 / 4), (AGGREGATIONS[1], 2.0, (2 + 10) / 2), (AGGREGATIONS[2], 16.0, 16 / 16)],
    ids=repr,
)
def test_values_by_hand(aggregation, denominator, loss):
    found = aggregation.denominator(MASK)
    assert found.item() == denominator
    assert aggregation.reduce(LOSSES, MASK, found).item() == pytest.approx(loss)


@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=repr)
def test_reduce_divides_by_what_it_is_given(aggregation):
    own = aggregation.denominator(MASK)
    once = aggregation.reduce(LOSSES, MASK, own)
    torch.testing.assert_close(aggregation.reduce(LOSSES, MASK, 4 * own), once / 4)


@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=repr)
def test_nothing_counted_gives_zero_loss_and_zero_gradient(aggregation):
    losses = torch.full((2, 3), math.nan, requires_grad=True)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    loss = aggregation.reduce(losses, mask, aggregation.denominator(mask))
    loss.backward()
    assert loss.item() == 0
    assert losses.grad.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=repr)
def test_masked_losses_do_not_leak(aggregation):
    dirty = torch.where(MASK, LOSSES, math.nan)
    denominator = aggregation.denominator(MASK)
    assert aggregation.reduce(dirty, MASK, denominator) == aggregation.reduce(LOSSES, MASK, denominator)


def test_a_constant_length_must_be_positive():
    assert ConstantLength(max_tokens=1).denominator(MASK).item() == 2.0
    with pytest.raises(ValueError, match="max_tokens is 0"):
        ConstantLength(max_tokens=0)
