import math

import pytest
import torch

from lightning_mmrl.algorithms.penalties.kl import ESTIMATORS
from lightning_mmrl.ops.kl import approx_kl, k1, k2, k3


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


@pytest.mark.parametrize("where_mask", [True, False])
def test_estimates_of_single_tokens_by_hand(where_mask):
    drift = 0.3
    logprobs, reference = torch.tensor([[-1.0]]), torch.tensor([[-1.0 - drift]])
    mask = torch.tensor([[where_mask]])
    expected = [drift, drift**2 / 2, math.exp(-drift) - 1 + drift]
    for estimator, value in zip((k1, k2, k3), expected, strict=True):
        found = estimator(logprobs, reference, mask).item()
        assert found == pytest.approx(value, rel=1e-5) if where_mask else found == 0


def test_what_each_estimate_is_in_the_mean_as_a_value_and_as_a_gradient():
    """Over a whole vocabulary: k1 and k3 have the value of the divergence; k2, and k3 with the ratio, its gradient."""
    generator = torch.Generator().manual_seed(0)
    logits, others = torch.randn(2, 1, 9, generator=generator, dtype=torch.float64)
    logits = logits.requires_grad_()
    mask = torch.ones(1, 9, dtype=torch.bool)
    logprobs, reference = logits.log_softmax(-1), others.log_softmax(-1)
    weights = logprobs.exp().detach()
    divergence = (logprobs.exp() * (logprobs - reference)).sum()
    (wanted,) = torch.autograd.grad(divergence, logits, retain_graph=True)
    ratio = (logprobs - logprobs.detach()).exp()
    means = {name: (weights * estimator(logprobs, reference, mask)).sum() for name, estimator in ESTIMATORS.items()}
    means |= {
        f"{name}*ratio": (weights * ratio * estimator(logprobs, reference, mask)).sum()
        for name, estimator in ESTIMATORS.items()
    }
    found = {name: torch.autograd.grad(value, logits, retain_graph=True)[0] for name, value in means.items()}
    right_value = {name for name, value in means.items() if torch.isclose(value, divergence)}
    right_gradient = {name for name, gradient in found.items() if torch.allclose(gradient, wanted)}
    assert right_value == {"k1", "k3", "k1*ratio", "k3*ratio"}
    assert right_gradient == {"k2", "k1*ratio", "k3*ratio"}
    assert found["k1"].abs().max() < 1e-12
