"""Schedules at every step against what their names say, at their ends, and with settings that cannot be."""

import math

import pytest

from lightning_mmrl.algorithms.schedules import DelayedDecay, WarmupConstant, WarmupCosine


def values(schedule, num_steps, steps=None):
    return [schedule(step, num_steps) for step in (range(num_steps) if steps is None else steps)]


def test_the_cosine_falls_as_a_squared_half_angle_after_the_warm_up():
    half_angles = [math.cos(math.pi * k / 8) ** 2 for k in range(5)]
    expected = [1 / 3, 2 / 3, 1.0, *(0.2 + 0.8 * share for share in half_angles)]
    assert values(WarmupCosine(warmup_steps=3, final_fraction=0.2), 8) == pytest.approx(expected)


def test_the_cosine_stays_where_it_ended():
    assert values(WarmupCosine(final_fraction=0.2), 5, [4, 5, 50]) == pytest.approx([0.2] * 3)


def test_the_cosine_of_few_steps():
    assert values(WarmupCosine(), 1) == [1.0]
    assert values(WarmupCosine(), 2) == pytest.approx([1.0, 0.1])
    assert values(WarmupCosine(warmup_steps=5), 2) == pytest.approx([0.2, 0.4])
    assert values(WarmupCosine(warmup_steps=2), 2, [2]) == [1.0]


def test_a_warm_up_is_linear_and_then_over():
    assert values(WarmupConstant(warmup_steps=4), 9) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 6)
    assert values(WarmupConstant(), 3) == [1.0] * 3


def test_a_decay_begins_with_the_base_value_once_the_delay_is_over():
    assert values(DelayedDecay(delay_steps=2, factor=0.5), 6) == [0.0, 0.0, 1.0, 0.5, 0.25, 0.125]
    assert values(DelayedDecay(), 3) == [1.0] * 3


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_a_share_may_be_all_and_nothing(fraction):
    assert WarmupCosine(final_fraction=fraction)(9, 10) == pytest.approx(fraction)
    assert DelayedDecay(factor=fraction)(1, 10) == fraction


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_what_is_no_share_is_refused(fraction):
    with pytest.raises(ValueError, match=f"final_fraction is {fraction}; it is a share"):
        WarmupCosine(final_fraction=fraction)
    with pytest.raises(ValueError, match=f"factor is {fraction}; each step multiplies the value by it"):
        DelayedDecay(factor=fraction)


@pytest.mark.parametrize("make", [WarmupCosine, WarmupConstant])
def test_a_negative_number_of_steps_is_refused(make):
    with pytest.raises(ValueError, match="warmup_steps is -1; it must be at least 0"):
        make(warmup_steps=-1)
    with pytest.raises(ValueError, match="delay_steps is -1; it must be at least 0"):
        DelayedDecay(delay_steps=-1)
