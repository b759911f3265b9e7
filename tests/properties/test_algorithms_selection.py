"""Selections against independent computations: the accuracy band, groups with a signal, and PAD in both forms."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.selection.accuracy_band import AccuracyBand
from lightning_mmrl.algorithms.selection.has_signal import HasSignal
from lightning_mmrl.algorithms.selection.pad import PaperPAD, ReleasedPAD

TENTHS = st.integers(0, 10).map(lambda tenths: tenths / 10)


@st.composite
def groups(draw):
    num_prompts, size = draw(st.integers(1, 4)), draw(st.integers(2, 10))
    count = num_prompts * size
    flags = st.lists(st.booleans(), min_size=count, max_size=count)
    rewards = draw(st.lists(st.sampled_from([0.0, 0.1, 1.0]), min_size=count, max_size=count))
    return (
        torch.tensor(rewards).reshape(num_prompts, size),
        torch.tensor(draw(flags)).reshape(num_prompts, size),
        torch.tensor(draw(flags)).reshape(num_prompts, size),
    )


@given(groups(), TENTHS, TENTHS)
def test_the_band_is_that_of_exact_fractions(drawn, one, other):
    """Both bounds belong to it, whatever k / n and 0.3 are as floats."""
    rewards, passed, valid = drawn
    low, high = sorted((one, other))
    found = AccuracyBand(low=low, high=high)(rewards, passed, valid).tolist()
    for row, keeps in enumerate(found):
        right = [bool(p) for p, v in zip(passed[row], valid[row], strict=True) if v]
        exact = len(right) >= 2 and Fraction(str(low)) <= Fraction(sum(right), len(right)) <= Fraction(str(high))
        assert keeps == exact


def test_what_a_failed_verifier_called_right_is_in_no_share():
    passed, valid = torch.tensor([[False, False, True, True]]), torch.tensor([[True, True, False, False]])
    assert AccuracyBand(low=0.5, high=1.0)(torch.zeros(1, 4), passed, valid).tolist() == [False]
    assert AccuracyBand(low=0.5, high=1.0)(torch.zeros(1, 4), passed, ~valid).tolist() == [True]


@given(groups())
def test_a_group_has_a_signal_if_and_only_if_its_advantages_have(drawn):
    rewards, passed, valid = drawn
    advantages = GroupNormalized()(rewards, valid)
    assert HasSignal()(rewards, passed, valid).tolist() == (advantages != 0).any(-1).tolist()


@given(groups(), st.randoms(use_true_random=False))
def test_groups_are_judged_alone_and_whatever_failed_verifiers_left(drawn, random):
    rewards, passed, valid = drawn
    order = random.sample(range(len(rewards)), len(rewards))
    for rule in (AccuracyBand(), HasSignal()):
        expected = rule(rewards, passed, valid)
        assert torch.equal(rule(rewards[order], passed[order], valid[order]), expected[order])
        spoiled = torch.where(valid, rewards, torch.nan)
        assert torch.equal(rule(spoiled, passed ^ ~valid, valid), expected)


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.1), (-0.1, 0.5), (0.5, 1.1), (math.nan, 1.0)])
def test_a_band_that_cannot_be_is_refused(low, high):
    with pytest.raises(ValueError, match=f"low is {low} and high is {high}"):
        AccuracyBand(low=low, high=high)


@st.composite
def magnitudes(draw):
    count = draw(st.integers(2, 24))
    values = draw(
        st.lists(st.sampled_from([-2.47, -0.35, 0.0, 0.02, 0.03, 0.54, 0.94, 1.21]), min_size=count, max_size=count)
    )
    candidates = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return torch.tensor([values], dtype=torch.float64), torch.tensor([candidates])


def drawn_by(rule, advantages, candidates, seed=0, step=0, num_steps=10):
    generator = torch.Generator().manual_seed(seed)
    return rule(advantages, candidates, step=step, num_steps=num_steps, generator=generator)


@given(magnitudes(), st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([0.97, math.inf]))
def test_the_paper_draws_each_of_enough_once_and_only_what_is_within_the_thresholds(drawn, rho, high):
    advantages, candidates = drawn
    weights = drawn_by(PaperPAD(rho=rho, high=high), advantages, candidates)
    inside = [bool(c) and 0.03 <= abs(a) <= high for a, c in zip(advantages[0].tolist(), candidates[0], strict=True)]
    assert set(weights.flatten().tolist()) <= {0.0, 1.0}
    assert int(weights.sum()) == min(math.ceil(rho * int(candidates.sum())), sum(inside))
    assert not weights[0][~torch.tensor(inside)].any()


@given(magnitudes(), st.sampled_from([0.97, math.inf]))
def test_the_code_draws_half_again_as_many_or_keeps_all(drawn, high):
    """Its thresholds do not belong to what is eligible."""
    advantages, candidates = drawn
    weights = drawn_by(ReleasedPAD(high=high), advantages, candidates)
    inside = [bool(c) and 0.03 < abs(a) < high for a, c in zip(advantages[0].tolist(), candidates[0], strict=True)]
    if any(inside):
        assert int(weights.sum()) == 3 * int(candidates.sum()) // 2
        assert not weights[0][~torch.tensor(inside)].any()
    else:
        assert torch.equal(weights, candidates.double())


def test_thresholds_belong_to_what_is_eligible_in_the_paper_alone():
    advantages, candidates = torch.tensor([[0.25, -0.5, 9.0, 0.125]]), torch.tensor([[True, True, True, True]])
    paper = drawn_by(PaperPAD(low=0.25, high=0.5, rho=1.0), advantages, candidates)
    assert paper.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    released = drawn_by(ReleasedPAD(low=0.25, high=0.5), advantages, candidates)
    assert released.tolist() == [[1.0, 1.0, 1.0, 1.0]], "none is eligible, so all are kept"


VALUES = [2.47, 0.35, 1.62, 0.54, 0.94]


def test_probabilities_are_those_written_out():
    values = torch.tensor(VALUES, dtype=torch.float64)
    for step, tau in ((0, 1.0), (3, 0.7), (7, 0.3), (99, 0.3)):
        powers = [math.exp(value / tau) for value in VALUES]
        found = PaperPAD().probabilities(values, step, 8)
        assert found.tolist() == pytest.approx([power / math.fsum(powers) for power in powers], rel=1e-12)
    powers = [value**1.5 for value in VALUES]
    found = ReleasedPAD().probabilities(values)
    assert found.tolist() == pytest.approx([power / math.fsum(powers) for power in powers], rel=1e-12)


def frequencies(rule, rounds, step=0):
    """How often each value is drawn, as a share of all draws."""
    advantages, candidates = torch.tensor([VALUES], dtype=torch.float64), torch.ones(1, len(VALUES), dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    total = sum(
        rule(advantages, candidates, step=step, num_steps=8, generator=generator).flatten() for _ in range(rounds)
    )
    return (total / total.sum()).tolist(), int(total.sum())


@pytest.mark.parametrize("rule", [PaperPAD(rho=0.2), ReleasedPAD()], ids=["paper", "released"])
@pytest.mark.parametrize("step", [0, 7])
def test_frequencies_are_the_probabilities(rule, step):
    """Within 4.5 standard deviations of a binomial share, which one of 150,000 exceeds; controls: other ones."""
    values = torch.tensor(VALUES, dtype=torch.float64)
    own = rule.probabilities(values, step, 8) if isinstance(rule, PaperPAD) else rule.probabilities(values)
    found, count = frequencies(rule, 2000, step)
    others = [
        torch.full_like(own, 0.2),
        PaperPAD().probabilities(values, 4, 8),
        ReleasedPAD(power=1.0).probabilities(values),
    ]

    def fits(expected):
        bounds = [4.5 * math.sqrt(share * (1 - share) / count) for share in expected]
        return all(abs(a - b) <= bound for a, b, bound in zip(found, expected, bounds, strict=True))

    assert fits(own.tolist())
    assert not any(fits(other.tolist()) for other in others)


def test_the_second_draw_of_the_paper_is_without_the_first():
    """Both of two are drawn once each, whatever their probabilities; pairs of three follow the chain of draws."""
    advantages, candidates = torch.tensor([[9.0, 0.04]]), torch.ones(1, 2, dtype=torch.bool)
    assert drawn_by(PaperPAD(rho=1.0), advantages, candidates).tolist() == [[1.0, 1.0]]
    three = torch.tensor([[2.0, 1.0, 0.5]], dtype=torch.float64)
    first = PaperPAD().probabilities(three[0], 0, 8).tolist()
    left_out = [
        sum(first[i] * first[j] / (1 - first[i]) for i in range(3) for j in range(3) if {i, j, k} == {0, 1, 2})
        for k in range(3)
    ]
    generator, rounds = torch.Generator().manual_seed(2), 2000
    missing = torch.zeros(3, dtype=torch.float64)
    for _ in range(rounds):
        ones = torch.ones(1, 3, dtype=torch.bool)
        missing += 1 - PaperPAD(rho=0.5)(three, ones, step=0, num_steps=8, generator=generator).flatten()
    for share, expected in zip((missing / rounds).tolist(), left_out, strict=True):
        assert share == pytest.approx(expected, abs=4.5 * math.sqrt(expected * (1 - expected) / rounds))


def test_a_temperature_reaches_its_last_value_with_the_last_step():
    rule = PaperPAD(tau_first=2.0, tau_last=0.5)
    assert [rule.tau(step, 4) for step in (0, 1, 2, 3, 4)] == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.5])
    assert [rule.tau(step, 2) for step in (0, 1)] == [2.0, 0.5]
    assert rule.tau(0, 1) == 2.0


def test_a_lower_threshold_of_zero_makes_all_eligible_in_the_paper():
    advantages, candidates = torch.tensor([[0.0, 0.01, 5.0]]), torch.ones(1, 3, dtype=torch.bool)
    assert drawn_by(PaperPAD(low=0.0, rho=1.0), advantages, candidates).tolist() == [[1.0, 1.0, 1.0]]


def test_fewer_draws_than_one_keep_all_in_the_code():
    advantages, candidates = torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool)
    assert drawn_by(ReleasedPAD(share=0.4), advantages, candidates).tolist() == [[1.0, 1.0]]
    assert drawn_by(ReleasedPAD(share=0.5), advantages, candidates).sum() == 1


@pytest.mark.parametrize("values", [[math.inf], [math.inf, 1.0], [1e-250, 2e-250]])
def test_probabilities_that_are_no_numbers_become_equal_ones(values):
    rule = PaperPAD() if values[0] == math.inf else ReleasedPAD()
    tensor = torch.tensor(values, dtype=torch.float64)
    found = rule.probabilities(tensor, 0, 8) if isinstance(rule, PaperPAD) else rule.probabilities(tensor)
    assert found.tolist() == [1 / len(values)] * len(values)


def test_an_empty_pool_is_an_empty_batch_in_the_paper_and_the_full_one_in_the_code():
    advantages, candidates = torch.tensor([[0.0, 0.01, 5.0]]), torch.tensor([[True, True, False]])
    assert not drawn_by(PaperPAD(), advantages, candidates).any()
    assert drawn_by(ReleasedPAD(), advantages, candidates).tolist() == [[1.0, 1.0, 0.0]]


@pytest.mark.parametrize("num_right", range(1, 8))
def test_rare_answers_are_dropped_only_if_asked(num_right):
    """With 0.97 no right answer of a prompt that less than half solve is left, and no wrong one of the others."""
    rewards = torch.tensor([[1.0] * num_right + [0.0] * (8 - num_right)])
    candidates = torch.ones(1, 8, dtype=torch.bool)
    advantages = GroupNormalized()(rewards, candidates)
    right, wrong = rewards == 1, rewards == 0
    known = {1: (2.47, 0.35), 2: (1.62, 0.54), 3: (1.21, 0.72), 4: (0.94, 0.94)}
    expected = known[num_right] if num_right in known else known[8 - num_right][::-1]
    assert advantages[right][0].abs() == pytest.approx(expected[0], abs=6e-3)
    assert advantages[wrong][0].abs() == pytest.approx(expected[1], abs=6e-3)
    for rule, released in (
        (PaperPAD(rho=1.0), PaperPAD(rho=1.0, high=0.97)),
        (ReleasedPAD(share=20.0), ReleasedPAD(share=20.0, high=0.97)),
    ):
        assert drawn_by(rule, advantages, candidates).all(), "nothing is out of reach by default"
        kept = drawn_by(released, advantages, candidates) > 0
        assert bool(kept[right].any()) == (num_right >= 4)
        assert bool(kept[wrong].any()) == (num_right <= 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PaperPAD(low=0.5, high=0.5), "low is 0.5 and high is 0.5"),
        (lambda: ReleasedPAD(low=-1.0), "low is -1.0 and high is inf"),
        (lambda: PaperPAD(rho=0.0), "rho is 0.0; it is a share"),
        (lambda: PaperPAD(rho=1.5), "rho is 1.5; it is a share"),
        (lambda: PaperPAD(tau_last=0.0), "tau_last is 0.0; a temperature"),
        (lambda: PaperPAD(tau_first=math.inf), "tau_first is inf; a temperature"),
        (lambda: ReleasedPAD(share=0.0), "share is 0.0; it must be above 0"),
        (lambda: ReleasedPAD(share=math.inf), "share is inf; it must be above 0 and finite"),
        (lambda: ReleasedPAD(power=math.nan), "power is nan; it must be above 0"),
    ],
)
def test_settings_of_pad_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
