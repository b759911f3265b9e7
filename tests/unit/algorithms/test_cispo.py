"""CISPO at single tokens by hand, and bounds that cannot be."""

import math

import pytest
import torch

from lightning_mmrl.algorithms.losses.cispo import CISPO
from lightning_mmrl.types.batches import LossInputs


def test_the_weight_stays_within_its_bounds_and_says_where_it_is_not_the_ratio():
    inputs = LossInputs(
        logprobs=torch.tensor([[-1.0, -1.0, -1.0, -1.0]], dtype=torch.float64, requires_grad=True),
        old_logprobs=-1 - torch.tensor([[0.1, 0.5, 2.0, 9.0]], dtype=torch.float64).log(),
        advantages=torch.tensor([[2.0, 2.0, 2.0, 2.0]], dtype=torch.float64),
        completion_mask=torch.tensor([[True, True, True, False]]),
    )
    output = CISPO(weight_low=0.25, weight_high=1.5)(inputs)
    output.token_losses.sum().backward()
    assert output.token_losses[0].tolist() == pytest.approx([0.5, 1.0, 3.0, 0.0])
    assert output.clipped.tolist() == [[True, False, True, False]]
    assert inputs.logprobs.grad[0].tolist() == pytest.approx([-0.5, -1.0, -3.0, 0.0])


@pytest.mark.parametrize("bounds", [{"weight_low": 0.0}, {"weight_low": 1.0}, {"weight_high": 1.0}, {}])
def test_a_bound_may_be_at_one(bounds):
    """Of tokens that are as likely as they were, whose weight no bound may touch."""
    inputs = LossInputs(
        logprobs=torch.tensor([[-1.0]]),
        old_logprobs=torch.tensor([[-1.0]]),
        advantages=torch.tensor([[1.0]]),
        completion_mask=torch.ones(1, 1, dtype=torch.bool),
    )
    output = CISPO(**bounds)(inputs)
    assert output.token_losses.item() == 1.0
    assert not output.clipped.item()


@pytest.mark.parametrize(
    "bounds",
    [
        {"weight_low": -0.1},
        {"weight_low": 1.1},
        {"weight_low": math.nan},
        {"weight_high": 0.9},
        {"weight_high": math.nan},
    ],
)
def test_bounds_on_one_side_of_one_are_refused(bounds):
    with pytest.raises(ValueError, match=f"{next(iter(bounds))} is .* it bounds ratios around 1"):
        CISPO(**bounds)
