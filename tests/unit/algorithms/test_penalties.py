"""The KL penalty and the entropy bonus alone: values of single tokens by hand, and settings that cannot be."""

import math

import pytest
import torch

from lightning_mmrl.algorithms.penalties.entropy import EntropyBonus
from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.algorithm import EntropySettings, KLSettings


def estimate(penalty, logprob, old, reference, counted=True):
    """Of a single token, and its derivative by the token's log-probability."""
    logprobs = torch.tensor([[logprob]], dtype=torch.float64, requires_grad=True)
    others = (torch.tensor([[value]], dtype=torch.float64) for value in (old, reference))
    found = penalty(logprobs, *others, torch.tensor([[counted]]))
    found.sum().backward()
    return found.item(), logprobs.grad.item()


def test_the_ratio_multiplies_the_estimate_with_its_gradient():
    value, gradient = estimate(
        KLPenalty(KLSettings(coefficient=1.0, estimator="k1", ratio_correction=True)), -1.0, -1.2, -1.5
    )
    assert value == pytest.approx(0.5 * math.exp(0.2))
    assert gradient == pytest.approx((0.5 + 1) * math.exp(0.2))
    assert estimate(KLPenalty(KLSettings(coefficient=1.0, estimator="k1")), -1.0, -1.2, -1.5) == pytest.approx(
        (0.5, 1.0)
    )


@pytest.mark.parametrize("drift", [1000.0, -1000.0])
def test_a_runaway_token_stays_finite(drift):
    """Both exponentials end at 20 nats: that of the ratio, and that of k3, whose exponent has the other sign."""
    corrected = KLPenalty(KLSettings(coefficient=1.0, estimator="k1", ratio_correction=True))
    assert estimate(corrected, drift, 0.0, drift - 1)[0] == pytest.approx(math.exp(math.copysign(20, drift)))
    log_d = math.copysign(20, -drift)
    assert estimate(KLPenalty(KLSettings(coefficient=1.0)), drift, 0.0, 0.0)[0] == pytest.approx(
        math.expm1(log_d) - log_d
    )


@pytest.mark.parametrize("ratio_correction", [False, True])
def test_what_is_not_counted_is_exactly_zero_whatever_is_stored_there(ratio_correction):
    penalty = KLPenalty(KLSettings(coefficient=1.0, ratio_correction=ratio_correction))
    assert estimate(penalty, math.nan, math.inf, -math.inf, counted=False) == (0.0, 0.0)


@pytest.mark.parametrize(("term", "settings"), [(KLPenalty, KLSettings), (EntropyBonus, EntropySettings)])
@pytest.mark.parametrize("coefficient", [0.0, 0.5, 7.0])
def test_a_coefficient_is_multiplied_by_its_schedule(term, settings, coefficient):
    made = term(settings(coefficient=coefficient), schedule=lambda step, num_steps: step / num_steps)
    assert made.coefficient_at(3, 12) == coefficient / 4


@pytest.mark.parametrize(("term", "settings"), [(KLPenalty, KLSettings), (EntropyBonus, EntropySettings)])
@pytest.mark.parametrize("coefficient", [-0.1, math.inf, math.nan])
def test_a_coefficient_that_cannot_be_is_refused(term, settings, coefficient):
    with pytest.raises(ConfigError, match=f"coefficient is {coefficient}; it must be at least 0 and finite"):
        term(settings(coefficient=coefficient))


def test_other_estimators_and_places_are_refused():
    with pytest.raises(ConfigError, match=r"kl\.estimator is 'k4', which is no choice; did you mean"):
        KLPenalty(KLSettings(coefficient=1.0, estimator="k4"))
    with pytest.raises(ConfigError, match=r"kl\.where is 'value', which is no choice; known are loss, reward"):
        KLPenalty(KLSettings(coefficient=1.0, where="value"))
    assert [KLPenalty(KLSettings(coefficient=1.0, where=where)).in_reward for where in ("loss", "reward")] == [
        False,
        True,
    ]
