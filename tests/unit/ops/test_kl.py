import math

import pytest
import torch

from lightning_mmrl.ops.kl import approx_kl


def test_k3_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, math.nan]])
    old_logprobs = torch.tensor([[-1.0, -2.5, math.inf]])
    mask = torch.tensor([[True, True, False]])
    assert approx_kl(logprobs, old_logprobs, mask).item() == pytest.approx((math.exp(0.5) - 1.5) / 2)


def test_masked_garbage_does_not_reach_the_gradient():
    logprobs = torch.tensor([[-1.0, math.nan]], requires_grad=True)
    approx_kl(logprobs, torch.tensor([[-1.5, 0.0]]), torch.tensor([[True, False]])).backward()
    assert logprobs.grad[0].tolist() == pytest.approx([math.exp(0.5) - 1, 0.0])


def test_zero_for_equal_policies_and_for_no_tokens():
    logprobs = torch.randn(2, 3)
    assert approx_kl(logprobs, logprobs, torch.ones(2, 3, dtype=torch.bool)).item() == 0.0
    assert approx_kl(logprobs, logprobs + 1, torch.zeros(2, 3, dtype=torch.bool)).item() == 0.0


def test_expectation_under_the_old_policy_is_the_divergence():
    old, new = torch.tensor([0.2, 0.5, 0.3]).double(), torch.tensor([0.4, 0.4, 0.2]).double()
    one = torch.ones(1, 1, dtype=torch.bool)
    k3 = torch.stack([approx_kl(new[i].log().view(1, 1), old[i].log().view(1, 1), one) for i in range(3)])
    assert (old * k3).sum().item() == pytest.approx((old * (old / new).log()).sum().item())
