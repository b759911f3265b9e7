"""Running moments against NumPy in float64, over any split into batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.ops.moments import Moments

numbers = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30)


def over(batches):
    found = Moments()
    for batch in batches:
        found = found.plus(batch)
    return found


@given(st.lists(numbers, min_size=1, max_size=5))
def test_batches_have_the_moments_of_all_numbers_together(batches):
    found, together = over(batches), np.concatenate([np.array(batch, dtype=np.float64) for batch in batches])
    assert found.count == len(together)
    assert found.mean == pytest.approx(together.mean(), rel=1e-9, abs=1e-9)
    assert found.variance == pytest.approx(together.var(), rel=1e-9, abs=1e-7)


@given(numbers, st.randoms())
def test_the_order_within_a_batch_does_not_change_a_bit(batch, generator):
    shuffled = list(batch)
    generator.shuffle(shuffled)
    assert Moments().plus(shuffled) == Moments().plus(batch)


def test_large_numbers_keep_a_small_spread():
    """The negative control is the difference of squares, which loses it."""
    batch = [1e8, 1e8 + 1, 1e8 + 2]
    assert Moments().plus(batch).variance == pytest.approx(2 / 3, rel=1e-12)
    squares = sum(np.float32(each) ** 2 for each in batch) / 3 - (sum(map(np.float32, batch)) / 3) ** 2
    assert squares != pytest.approx(2 / 3, rel=1e-2)


def test_an_empty_batch_changes_nothing_and_a_state_is_the_moments():
    found = over([[1.0, 4.0], []])
    assert found == Moments(count=2, mean=2.5, squares=4.5)
    assert Moments.of_state(found.state_dict()) == found
    assert Moments().variance == 0.0
