"""The critic's loss at single tokens by hand, and clips that cannot be."""

import math

import pytest
import torch

from lightning_mmrl.algorithms.losses.value_clip import ValueClip

ONE = torch.ones(1, 1, dtype=torch.bool)


def token(clip, value, old, wanted, mask=ONE):
    losses, clipped = clip(*(torch.tensor([[number]], dtype=torch.float64) for number in (value, old, wanted)), mask)
    return losses.item(), clipped.item()


@pytest.mark.parametrize(
    ("value", "old", "wanted", "loss", "clipped"),
    [
        # A value that comes nearer to its return by more than 0.5 is held back; one that goes away is not.
        (2.0, 1.0, 3.0, (3 - 1.5) ** 2 / 2, True),
        (1.25, 1.0, 3.0, (3 - 1.25) ** 2 / 2, False),
        (0.0, 1.0, 3.0, 3.0**2 / 2, False),
        (0.0, 1.0, -1.0, 1.5**2 / 2, True),
        (1.5, 1.0, 1.5, 0.0, False),
    ],
)
def test_the_clip_takes_the_worse_of_two_errors(value, old, wanted, loss, clipped):
    assert token(ValueClip(clip=0.5), value, old, wanted) == (pytest.approx(loss), clipped)
    assert token(ValueClip(clip=None), value, old, wanted) == (pytest.approx((value - wanted) ** 2 / 2), False)


@pytest.mark.parametrize("clip", [ValueClip(), ValueClip(clip=None)], ids=repr)
def test_what_is_not_counted_is_exactly_zero(clip):
    assert token(clip, math.nan, math.inf, 0.0, ~ONE) == (0.0, False)


def test_the_default_clip_is_at_a_fifth():
    assert token(ValueClip(), 2.0, 1.0, 3.0)[0] == pytest.approx((3 - 1.2) ** 2 / 2)


@pytest.mark.parametrize("clip", [0.0, -0.1, math.nan])
def test_a_clip_that_is_not_above_zero_is_refused(clip):
    with pytest.raises(ValueError, match=f"clip is {clip}; it bounds how far values move"):
        ValueClip(clip=clip)
