"""The two halves of PAD alone, against their definitions in float64: filter-only and subsample-only."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from step_cases import preset

from lightning_mmrl.algorithms.selection.pad import PaperPAD

FILTER, SUBSAMPLE = PaperPAD(rho=1.0), PaperPAD(low=0.0)
VALUES = (2.47, -0.35, 0.0, 0.02, 0.03, -0.54, 0.94)


def drawn(rule, advantages, candidates, seed=0, step=0):
    generator = torch.Generator().manual_seed(seed)
    weights = rule(advantages, candidates, step=step, num_steps=10, generator=generator)
    assert weights.dtype == advantages.dtype
    return weights.flatten().tolist()


def tensors(values, candidates):
    return torch.tensor([values], dtype=torch.float64), torch.tensor([candidates])


groups = st.integers(2, 12).flatmap(
    lambda size: st.tuples(
        st.lists(st.sampled_from(VALUES), min_size=size, max_size=size),
        st.lists(st.booleans(), min_size=size, max_size=size),
    )
)


@given(groups, st.integers(0, 99), st.sampled_from([(0.03, math.inf), (0.03, 0.97), (0.5, 3.0)]))
def test_filter_only_is_the_set_between_the_thresholds_whatever_is_drawn(group, seed, bounds):
    values, candidates = group
    low, high = bounds
    expected = [float(there and low <= abs(each) <= high) for each, there in zip(values, candidates, strict=True)]
    assert drawn(PaperPAD(rho=1.0, low=low, high=high), *tensors(values, candidates), seed=seed) == expected


@given(groups, st.integers(0, 99), st.sampled_from([0.1, 0.5, 0.9]))
def test_subsample_only_draws_its_share_of_all_without_repeating_any(group, seed, rho):
    values, candidates = group
    weights = drawn(PaperPAD(low=0.0, rho=rho), *tensors(values, candidates), seed=seed)
    assert sum(weights) == math.ceil(rho * sum(candidates))
    assert all(weight in (0.0, float(there)) for weight, there in zip(weights, candidates, strict=True))


def inclusion(values, tau, count):
    """The probability of each value to be among `count` draws without replacement, over all orders of drawing."""
    shares = [math.exp(abs(value) / tau) for value in values]
    found = [0.0] * len(values)
    for order in permutations(range(len(values)), count):
        chance, left = 1.0, math.fsum(shares)
        for place in order:
            chance, left = chance * shares[place] / left, left - shares[place]
        for place in order:
            found[place] += chance
    return found


@pytest.mark.parametrize("step", [0, 9])
def test_subsample_only_includes_each_completion_as_often_as_the_softmax_says(step):
    """Four standard errors of 3,000 draws; negative control: another temperature."""
    values, number = [1.2, 0.7, 0.3, 0.0], 3_000
    generator = torch.Generator().manual_seed(1)
    advantages, candidates = tensors(values, [True] * 4)
    counts = torch.zeros(4, dtype=torch.float64)
    for _ in range(number):
        counts += SUBSAMPLE(advantages, candidates, step=step, num_steps=10, generator=generator).flatten()
    expected = torch.tensor(inclusion(values, SUBSAMPLE.tau(step, 10), 2), dtype=torch.float64)
    error = 4 * (expected * (1 - expected) / number).sqrt().max()
    assert (counts / number - expected).abs().max() < error
    other = torch.tensor(inclusion(values, SUBSAMPLE.tau(9 - step, 10), 2), dtype=torch.float64)
    assert (counts / number - other).abs().max() > error
    assert counts[3] > 0, "PAD itself never draws a completion without an advantage"
    assert not PaperPAD(rho=1.0)(advantages, candidates, step=step, num_steps=10, generator=generator)[0, 3]


def test_at_a_high_temperature_all_completions_have_equal_chances():
    values = torch.tensor([2.47, 0.94, 0.35, 0.0], dtype=torch.float64)
    even = PaperPAD(low=0.0, tau_first=1e9, tau_last=1e9).probabilities(values, 0, 10)
    assert even.tolist() == pytest.approx([0.25] * 4, abs=1e-9)
    assert SUBSAMPLE.probabilities(values, 0, 10).tolist() != pytest.approx([0.25] * 4, abs=1e-2)


def test_the_halves_differ_from_each_other_and_from_the_whole():
    """The negative control of all of the above."""
    advantages, candidates = tensors([2.47, 0.02, -0.54, 0.94, 0.0, -0.35], [True] * 6)
    found = [drawn(rule, advantages, candidates, seed=3) for rule in (FILTER, SUBSAMPLE, PaperPAD())]
    assert found[0] == [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    assert [sum(each) for each in found] == [4.0, 3.0, 3.0]
    assert len({tuple(each) for each in found}) == 3 or found[1] != found[0] != found[2]


@pytest.mark.parametrize(("name", "rule"), [("revisual_filter_only", FILTER), ("revisual_subsample_only", SUBSAMPLE)])
def test_the_presets_are_these_rules(name, rule):
    found = preset(name).resample
    assert (found.low, found.high, found.rho if name.endswith("filter_only") else None) == (
        rule.low,
        rule.high,
        rule.rho if name.endswith("filter_only") else None,
    )
    assert found != preset("revisual_mm").resample
    assert replaced(found) == replaced(preset("revisual_mm").resample)


def replaced(rule):
    """What the ablations share with the whole."""
    return rule.high, rule.tau_first, rule.tau_last
