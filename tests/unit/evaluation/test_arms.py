"""Arms over seeds: against scipy, closed testing, and simulations of the whole procedure."""

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import integrate, stats
from scipy.special import ndtr

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.arms import (
    compare_arms,
    holm,
    mean_over_folds,
    over_seeds,
    power,
    power_line,
    smallest_difference,
)

SIMULATIONS = 2000


def drawn(generator, num_arms, num_seeds, truth=0.0):
    """Arms whose seeds share a base, as those of a comparison do, and whose last one differs by `truth`."""
    shared = generator.normal(0.6, 0.1, num_seeds)
    own = shared + generator.normal(0, 0.02, (num_arms, num_seeds))
    own[-1] += truth
    return {f"arm{place}": dict(enumerate(values.tolist())) for place, values in enumerate(own)}


@given(st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 3), min_size=2, max_size=8))
def test_each_comparison_is_the_paired_test_of_scipy(seeds):
    arms = np.array(seeds).T
    assume(min(np.ptp(arms[1] - arms[0]), np.ptp(arms[2] - arms[0])) > 1e-6)
    values = {name: dict(enumerate(each.tolist())) for name, each in zip("abc", arms, strict=True)}
    found = compare_arms(values, "a")
    assert [(each.arm, each.over) for each in found] == [("b", "a"), ("c", "a")]
    for each, own in zip(found, arms[1:], strict=True):
        expected = stats.ttest_rel(own, arms[0])
        assert each.found.p_value == pytest.approx(expected.pvalue, rel=1e-7)
        assert [each.found.low, each.found.high] == pytest.approx(list(expected.confidence_interval(0.95)), abs=1e-12)
        assert list(each.together) == pytest.approx(list(expected.confidence_interval(1 - 0.05 / 2)), abs=1e-12)
    smaller, larger = sorted(each.found.p_value for each in found)
    corrected = sorted(each.corrected for each in found)
    assert corrected == pytest.approx([min(1, 2 * smaller), min(1, max(2 * smaller, larger))], rel=1e-7)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_the_correction_is_closed_testing_by_bonferroni(p_values):
    """Holm's procedure rejects what Bonferroni rejects in every set of hypotheses that has it; all sets are tried."""
    places = range(len(p_values))
    subsets = list(chain.from_iterable(combinations(places, size) for size in range(1, len(p_values) + 1)))
    expected = [
        max(min(1.0, len(each) * min(p_values[other] for other in each)) for each in subsets if place in each)
        for place in places
    ]
    assert holm(p_values) == pytest.approx(expected)


def test_all_pairs_are_one_family_and_antisymmetric():
    values = drawn(np.random.default_rng(0), 3, 5)
    pairs = compare_arms(values, "arm1", all_pairs=True)
    assert [(each.arm, each.over) for each in pairs] == [("arm0", "arm1"), ("arm2", "arm1"), ("arm2", "arm0")]
    [alone, _] = compare_arms(values, "arm0")
    assert pairs[0].mean == pytest.approx(-alone.mean)
    assert min(each.corrected for each in pairs) == pytest.approx(min(1, 3 * min(each.found.p_value for each in pairs)))


def test_only_seeds_that_both_arms_have_are_paired():
    values = {"a": {0: 0.1, 1: 0.2, 2: 0.4}, "b": {1: 0.5, 2: 0.6, 3: 0.9}, "c": {7: 0.5}, "d": {2: 0.5}}
    b, c, d = compare_arms(values, "a")
    assert (b.seeds, b.found.values) == ((1, 2), pytest.approx((0.3, 0.2)))
    assert (c.seeds, c.mean, c.found, c.why_not) == ((), None, None, "no seed in common")
    assert (d.seeds, d.mean, d.found) == ((2,), pytest.approx(0.1), None)
    assert "no interval" in d.why_not
    assert b.corrected == pytest.approx(min(1, 3 * b.found.p_value)), "comparisons without an interval count too"


@pytest.mark.parametrize("step", [0.0, 0.1])
def test_equal_differences_have_no_interval_and_are_no_finding(step):
    """0.1 + 0.2 and 0.3 differ by rounding; that is no spread to test by."""
    base = {0: 0.1, 1: 0.2, 2: 0.7}
    [found] = compare_arms({"a": base, "b": {seed: value + step for seed, value in base.items()}}, "a")
    assert (found.found, found.together, found.corrected, found.smallest) == (None, None, None, None)
    assert found.mean == pytest.approx(step)
    assert "same in all 3 seeds" in found.why_not


def test_a_mean_has_an_interval_only_with_spread():
    assert over_seeds([0.3], 0.3) is None
    assert over_seeds([0.1 + 0.2, 0.3], 0.3) is None
    assert over_seeds([0.3, 0.5], 0.5).mean == pytest.approx(0.4)


def test_one_arm_has_nothing_to_compare_with():
    assert compare_arms({"a": {0: 0.5, 1: 0.6}}, "a", all_pairs=True) == ()


@pytest.mark.parametrize(
    ("values", "baseline", "sentence"),
    [({"a": {}}, "b", "none of the arms"), ({"a": {0: 0.1, 4: float("nan")}}, "a", "arm a, seed 4 has the value nan")],
)
def test_what_cannot_be_compared_is_refused(values, baseline, sentence):
    with pytest.raises(DataError, match=sentence):
        compare_arms(values, baseline)


def test_false_findings_are_bounded_together_and_intervals_hold_together():
    """Five equal arms, eight seeds; of 2,000 draws a share of 0.05 deviates by 0.005, so 0.065 is three of them away.

    The control: without a correction, and with single intervals, far more draws have a false finding.
    """
    generator = np.random.default_rng(1)
    corrected = single = together = 0
    for _ in range(SIMULATIONS):
        found = compare_arms(drawn(generator, 5, 8), "arm0")
        corrected += min(each.corrected for each in found) < 0.05
        single += min(each.found.p_value for each in found) < 0.05
        together += all(each.together[0] <= 0 <= each.together[1] for each in found)
    assert corrected / SIMULATIONS < 0.065
    assert together / SIMULATIONS > 0.935
    assert single / SIMULATIONS > 0.1


@pytest.mark.parametrize("num_seeds", [3, 8])
def test_one_interval_holds_the_truth_as_often_as_it_says(num_seeds):
    """Of 2,000 draws; as before, 0.015 is three standard errors. The control: an unpaired interval is far too wide."""
    generator, held, unpaired = np.random.default_rng(2), 0, 0
    for _ in range(SIMULATIONS):
        values = drawn(generator, 2, num_seeds, truth=0.03)
        [found] = compare_arms(values, "arm0")
        held += found.found.low <= 0.03 <= found.found.high
        own, other = (list(values[arm].values()) for arm in ("arm1", "arm0"))
        low, high = stats.ttest_ind(own, other).confidence_interval(0.95)
        unpaired += low <= 0.03 <= high
    assert abs(held / SIMULATIONS - 0.95) < 0.015
    assert unpaired / SIMULATIONS > 0.99


@pytest.mark.parametrize(("num_seeds", "num_comparisons"), [(2, 1), (3, 4), (8, 4), (8, 1), (40, 10)])
def test_power_is_that_of_a_direct_integral(num_seeds, num_comparisons):
    """P(T > t) = E[1 - Phi(t s - shift)] over s, the root of a chi-square by its degrees of freedom."""
    freedom, difference = num_seeds - 1, smallest_difference(num_seeds, num_comparisons)
    edge, shift = stats.t.ppf(1 - 0.025 / num_comparisons, freedom), difference * np.sqrt(num_seeds)

    def found(s):
        return (1 - ndtr(edge * s - shift)) * stats.chi.pdf(s * np.sqrt(freedom), freedom) * np.sqrt(freedom)

    expected = integrate.quad(found, 0, 20, points=[1, shift / edge], limit=500)[0]
    assert expected == pytest.approx(0.8, abs=1e-6)
    assert power(difference, num_seeds, num_comparisons) == pytest.approx(expected, abs=1e-6)
    assert power(0.9 * difference, num_seeds, num_comparisons) < 0.79


def test_the_smallest_difference_is_found_in_four_of_five_simulations():
    """Of 2,000 draws a share of 0.8 deviates by 0.009. Four comparisons, of which one has a difference.

    The spread of a paired difference is 0.02 sqrt(2). Later steps of the correction find a little more than 0.8.
    """
    truth = smallest_difference(8, 4) * 0.02 * np.sqrt(2)
    generator, bonferroni, found = np.random.default_rng(3), 0, 0
    for _ in range(SIMULATIONS):
        each = compare_arms(drawn(generator, 5, 8, truth), "arm0")[-1]
        bonferroni += 4 * each.found.p_value < 0.05 and each.mean > 0
        found += each.corrected < 0.05 and each.mean > 0
    assert abs(bonferroni / SIMULATIONS - 0.8) < 0.027
    assert found >= bonferroni


def test_the_measured_spread_gives_the_smallest_difference_in_the_metric():
    [found] = compare_arms({"a": {0: 0.1, 1: 0.2, 2: 0.4}, "b": {0: 0.5, 1: 0.55, 2: 0.9}}, "a")
    assert found.smallest == pytest.approx(smallest_difference(3) * np.std([0.4, 0.35, 0.5], ddof=1))
    pairs = compare_arms({"a": {0: 0.1, 1: 0.2}, "b": {0: 0.5, 1: 0.55}, "c": {0: 0.5, 1: 0.7}}, "a", all_pairs=True)
    assert pairs[0].smallest == pytest.approx(smallest_difference(2, 3) * np.std([0.4, 0.35], ddof=1))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((8, 4, 0.03), "above 1.5 standard deviations of paired differences are found with at least 80 % power each"),
        ((8, 4, 0.03), "; 4.6 points if that deviation is 3.0 points."),
        ((8, 1), "8 seeds, 1 comparison: true differences above 1.2 "),
        ((1, 4), "1 seed, 4 comparisons: one seed says nothing about others"),
        ((8, 0), "nothing to compare with"),
    ],
)
def test_the_plan_says_what_will_be_found(arguments, sentence):
    assert sentence in power_line(*arguments)


def test_a_single_seed_has_no_smallest_difference():
    with pytest.raises(DataError, match="at least two seeds"):
        smallest_difference(1)


def test_a_seed_counts_only_with_all_its_folds():
    assert mean_over_folds({"fold_1": 0.2, "fold_2": 0.4}, ["fold_1", "fold_2"]) == pytest.approx(0.3)
    assert mean_over_folds({"fold_1": 0.2}, ["fold_1", "fold_2"]) is None
    assert mean_over_folds({None: 0.2}, [None]) == 0.2
