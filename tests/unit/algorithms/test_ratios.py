"""Ratios of tokens and of completions by hand, also of a completion that ran away."""

import math

import pytest
import torch

from lightning_mmrl.algorithms.losses.ratios import CompletionRatio, SequenceRatio, TokenRatio
from lightning_mmrl.types.batches import LossInputs


def ratios(ratio, *log_ratios):
    """Of a completion of these tokens and one more that does not count."""
    logprobs = torch.tensor([[*log_ratios, 5.0]], dtype=torch.float64)
    mask = torch.tensor([[True] * len(log_ratios) + [False]])
    zeros = torch.zeros_like(logprobs)
    inputs = LossInputs(logprobs=logprobs, old_logprobs=zeros, advantages=zeros, completion_mask=mask)
    return ratio(inputs)[0].tolist()


def test_a_token_has_its_own_or_that_of_its_completion():
    assert ratios(TokenRatio(), 0.5, -0.1) == pytest.approx([math.exp(0.5), math.exp(-0.1), 1.0])
    assert ratios(SequenceRatio(), 0.5, -0.1) == pytest.approx([math.exp(0.2), math.exp(0.2), 1.0])
    assert ratios(CompletionRatio(), 0.5, -0.1) == pytest.approx([math.exp(0.4), math.exp(0.4), 1.0])


@pytest.mark.parametrize("ratio", [TokenRatio(), SequenceRatio(), CompletionRatio()], ids=repr)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_runaway_ratio_ends_at_20_nats(ratio, sign):
    assert ratios(ratio, sign * 1000.0, sign * 900.0) == pytest.approx([math.exp(sign * 20.0)] * 2 + [1.0])
