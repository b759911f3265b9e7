"""The edges of an importance correction: padding, runaway tokens, bounds themselves, and values that are refused."""

import itertools
import math

import pytest
import torch

from lightning_mmrl.algorithms.corrections.importance import ImportanceCorrection

each_kind = pytest.mark.parametrize(
    ("level", "mode"), list(itertools.product(("token", "sequence"), ("truncate", "mask")))
)


@each_kind
def test_padding_is_in_no_weight_whatever_lies_there(level, mode):
    mask = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    old = torch.tensor([[-1.0, -2.0, math.nan], [math.nan, -math.inf, 0.0], [-1.0, -9.0, math.inf]])
    sampler = torch.tensor([[-1.2, -2.1, -math.inf], [0.0, math.nan, -9.0], [-1.5, 5.0, math.nan]])
    found = ImportanceCorrection(level=level, mode=mode, cap=1.4)(old, sampler, mask)
    inside = {"token": [0.2, 0.1, 0.5], "sequence": [0.3, 0.3, 0.5]}[level]
    torch.testing.assert_close(found.ratios[mask], torch.tensor(inside).exp())
    assert found.clipped[mask].tolist() == [False, False, True]
    assert found.weights[2, 0].item() == pytest.approx(1.4 if mode == "truncate" else 0.0)
    for values, neutral in ((found.weights, 1), (found.ratios, 1), (found.clipped, 0), (found.counted, 0)):
        assert (values[~mask] == neutral).all()
    assert found.counted.sum(-1).tolist() == ([2, 0, 1] if level == "token" else [1, 0, 1])


@each_kind
@pytest.mark.parametrize("gap", [800.0, math.inf])
def test_a_runaway_token_stays_finite(level, mode, gap):
    """An engine that calls its own token impossible, or the policy one that it was sure of."""
    mask = torch.ones(2, 2, dtype=torch.bool)
    old, sampler = torch.tensor([[-1.0, -1.0], [-gap, -1.0]]), torch.tensor([[-gap, -1.0], [-1.0, -1.0]])
    found = ImportanceCorrection(level=level, mode=mode, cap=3.0, floor=0.5)(old, sampler, mask)
    assert found.ratios[0, 0].item() == pytest.approx(math.exp(20), rel=1e-6)
    assert found.ratios[1, 0].item() == pytest.approx(math.exp(-20), rel=1e-6)
    assert found.weights[:, 0].tolist() == ([3.0, 0.5] if mode == "truncate" else [0.0, 0.0])


@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_the_bounds_themselves_are_inside(mode):
    ratios = torch.tensor([[0.25, 0.2499, 4.0, 4.0001]], dtype=torch.float64)
    correction = ImportanceCorrection(mode=mode, cap=4.0, floor=0.25)
    found = correction(ratios.log(), torch.zeros_like(ratios), torch.ones(1, 4, dtype=torch.bool))
    assert found.clipped.tolist() == [[False, True, False, True]]
    beyond = {"truncate": [0.25, 4.0], "mask": [0.0, 0.0]}[mode]
    torch.testing.assert_close(found.weights[0], torch.tensor([0.25, beyond[0], 4.0, beyond[1]]).double())


def test_an_engine_of_lower_precision_is_compared_in_that_of_the_policy():
    old = torch.tensor([[-1.0]], dtype=torch.float64)
    found = ImportanceCorrection()(old, torch.tensor([[-1.1]], dtype=torch.bfloat16), torch.ones(1, 1).bool())
    assert found.weights.dtype == torch.float64
    assert found.weights.item() == pytest.approx(math.exp(0.1), rel=1e-2)  # bfloat16 has 8 bits


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"level": "batch"}, "level is 'batch'; it must be one of token, sequence"),
        ({"mode": "clip"}, "mode is 'clip'; it must be one of truncate, mask"),
        ({"cap": 1.0}, r"cap is 1\.0; .* it must be above 1"),
        ({"cap": math.nan}, "cap is nan"),
        ({"floor": 1.0}, r"floor is 1\.0; it must be at least 0 and below 1"),
        ({"floor": -0.1}, r"floor is -0\.1"),
        ({"floor": math.nan}, "floor is nan"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ImportanceCorrection(**values)


def test_no_cap_at_all_is_taken():
    assert ImportanceCorrection(cap=math.inf, floor=0.999).cap == math.inf


@each_kind
@pytest.mark.parametrize("side", [0, 1])
def test_no_gradient_flows_into_a_weight(level, mode, side):
    """Each side alone: the weight is a constant of the step, whatever its log-probabilities were computed from."""
    sides = [torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.1, -2.2]])]
    sides[side].requires_grad_()
    found = ImportanceCorrection(level=level, mode=mode)(*sides, torch.ones(1, 2, dtype=torch.bool))
    assert not found.weights.requires_grad
    assert not found.ratios.requires_grad
