"""DFT against other derivations: gradients of p and of (1 - p^a) / a, finite differences, and cross-entropy."""

import math

import pytest
import torch

from lightning_mmrl.algorithms.losses.cross_entropy import CrossEntropy
from lightning_mmrl.algorithms.losses.dft import DynamicFineTuning
from lightning_mmrl.errors import ConfigError

BANNED = 3
"""A token that can never be said, as those that stand for media."""


@pytest.fixture
def logits():
    """Of 2 targets of 5 tokens over 7 words, of which one is banned."""
    generator = torch.Generator().manual_seed(4)
    found = 3 * torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    found[..., BANNED] = -math.inf
    return found.requires_grad_()


@pytest.fixture
def targets():
    return torch.tensor([[0, 1, 2, 4, 5], [6, 6, 5, 0, 1]])


def chosen(values, targets):
    return values.gather(-1, targets[..., None])[..., 0]


def gradient(loss, logits):
    """A banned token has no gradient."""
    return torch.autograd.grad(loss, logits, retain_graph=True)[0].nan_to_num(nan=0.0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_gradient_is_minus_that_of_the_probability(logits, targets, temperature):
    logprobs = chosen((logits / temperature).log_softmax(-1), targets)
    found = gradient(DynamicFineTuning()(logprobs).sum(), logits)
    expected = gradient(-chosen((logits / temperature).softmax(-1), targets).sum(), logits)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("exponent", [0.3, 1.0, 2.0])
def test_the_gradient_is_that_of_the_family_of_objectives(logits, targets, exponent):
    found = gradient(DynamicFineTuning(exponent=exponent)(chosen(logits.log_softmax(-1), targets)).sum(), logits)
    powers = chosen(logits.softmax(-1), targets) ** exponent
    expected = gradient(((1 - powers) / exponent).sum(), logits)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_the_gradient_is_that_of_finite_differences(logits, targets):
    """By the logits of the words that are not banned."""
    found = gradient(DynamicFineTuning()(chosen(logits.log_softmax(-1), targets)).sum(), logits)
    for place in [(0, 0, 0), (0, 2, 5), (1, 1, 6), (1, 4, 1)]:
        step = torch.zeros_like(logits)
        step[place] = 1e-6
        with torch.no_grad():
            up, down = (-chosen((logits + sign * step).softmax(-1), targets).sum() for sign in (1, -1))
        assert float(found[place]) == pytest.approx(float(up - down) / 2e-6, rel=1e-7, abs=1e-9)


def test_the_value_is_the_weighed_cross_entropy(targets):
    found = DynamicFineTuning()(torch.tensor([[0.5, 0.25, 1.0]], dtype=torch.float64).log())
    assert found.tolist() == [pytest.approx([0.5 * math.log(2), 0.5 * math.log(2), 0.0])]


def test_the_exponent_zero_is_cross_entropy_bit_for_bit(logits, targets):
    logprobs = chosen(logits.log_softmax(-1), targets).float()
    found, expected = DynamicFineTuning(exponent=0.0)(logprobs), CrossEntropy()(logprobs)
    assert torch.equal(found, expected)
    assert torch.equal(expected, -logprobs)
    assert torch.equal(gradient(found.sum(), logits), gradient(expected.sum(), logits))


def test_a_weight_with_a_gradient_would_show(logits, targets):
    """The negative control: the weight is no constant."""
    logprobs = chosen(logits.log_softmax(-1), targets)
    whole = gradient((-logprobs.exp() * logprobs).sum(), logits)
    assert not torch.allclose(gradient(DynamicFineTuning()(logprobs).sum(), logits), whole, rtol=1e-2)


def test_a_token_without_probability_has_no_weight():
    logprobs = torch.tensor([[-1e4, -1.0]], requires_grad=True)
    DynamicFineTuning()(logprobs).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0, 0] == 0
    assert math.isclose(float(logprobs.grad[0, 1]), -math.exp(-1), rel_tol=1e-6)


@pytest.mark.parametrize("exponent", [-0.5, math.inf, math.nan])
def test_an_exponent_that_is_no_weight_is_refused(exponent):
    with pytest.raises(ConfigError, match=r"^exponent is .*; it must be a finite number of at least 0"):
        DynamicFineTuning(exponent=exponent)
