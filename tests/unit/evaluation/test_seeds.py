"""Student's t over seeds, against scipy's tests."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.seeds import paired_t

fractions = st.floats(0, 1, width=32)


@given(st.lists(st.tuples(fractions, fractions), min_size=2, max_size=8), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_it_equals_the_paired_test_of_scipy(pairs, level):
    own, before = np.array(pairs).T
    assume(np.ptp(own - before) > 1e-6)
    expected = stats.ttest_rel(own, before)
    low, high = expected.confidence_interval(level)
    found = paired_t((own - before).tolist(), level)
    assert [found.low, found.high] == pytest.approx([low, high], rel=1e-9, abs=1e-12)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-7)
    assert found.mean == pytest.approx(np.mean(own) - np.mean(before), abs=1e-12)
    assert found.sd == pytest.approx(np.std(own - before, ddof=1), rel=1e-9)


def test_values_by_hand():
    """Differences 1, 2, 3: mean 2, sd 1, t = 2 sqrt(3) with 2 degrees of freedom, whose 97.5 % quantile is 4.3027."""
    found = paired_t([1, 2, 3])
    assert (found.mean, found.sd, found.values) == (2.0, 1.0, (1.0, 2.0, 3.0))
    assert found.high - found.mean == pytest.approx(4.30265273 / np.sqrt(3))
    assert found.p_value == pytest.approx(1 - 2 * np.sqrt(3) / np.sqrt(2 + 12))


def test_pairing_matters():
    """Seeds differ more than what is compared; an unpaired test would see nothing."""
    before = np.array([0.3, 0.5, 0.7])
    own = before + np.array([0.04, 0.05, 0.06])
    assert paired_t((own - before).tolist()).p_value < 0.02
    assert stats.ttest_ind(own, before).pvalue > 0.7


def test_equal_differences_have_an_interval_without_width():
    for value, p_value in ((0.0, 1.0), (0.25, 0.0)):
        found = paired_t([value] * 3)
        assert (found.mean, found.low, found.high, found.sd, found.p_value) == (value, value, value, 0.0, p_value)


@pytest.mark.parametrize(
    ("values", "sentence"), [([], "0 seed"), ([0.1], "at least two"), ([0.1, float("nan")], "must be finite")]
)
def test_too_few_seeds_and_missing_values_are_refused(values, sentence):
    with pytest.raises(DataError, match=sentence):
        paired_t(values)
