import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.advantages.leave_one_out import LeaveOneOut
from lightning_mmrl.algorithms.advantages.reinforce_plus_plus import ReinforcePlusPlusBaseline

ESTIMATORS = [
    GroupNormalized(),
    GroupNormalized(std="batch"),
    GroupNormalized(std=None),
    LeaveOneOut(),
    LeaveOneOut(normalize=True),
    ReinforcePlusPlusBaseline(),
]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)

# Eighths are exact in binary, so that a shift changes no difference.
eighths = st.integers(-32, 32).map(lambda number: number / 8)


@st.composite
def scored(draw):
    size = draw(st.integers(1, 7))
    groups = draw(st.integers(1, 3))
    rewards = draw(st.lists(st.lists(eighths, min_size=size, max_size=size), min_size=groups, max_size=groups))
    valid = draw(st.lists(st.lists(st.booleans(), min_size=size, max_size=size), min_size=groups, max_size=groups))
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(valid)


@every_estimator
@given(scored(), eighths)
def test_a_shift_of_all_rewards_changes_nothing(estimator, case, shift):
    rewards, valid = case
    torch.testing.assert_close(estimator(rewards + shift, valid), estimator(rewards, valid))


@every_estimator
@given(scored(), st.randoms(use_true_random=False))
def test_completions_have_no_order(estimator, case, random):
    rewards, valid = case
    order = random.sample(range(rewards.shape[1]), rewards.shape[1])
    torch.testing.assert_close(estimator(rewards[:, order], valid[:, order]), estimator(rewards, valid)[:, order])


@every_estimator
@given(scored(), st.integers(1, 3))
def test_invalid_completions_are_as_if_absent(estimator, case, extra):
    rewards, valid = case
    padding = torch.full((len(rewards), extra), torch.nan, dtype=torch.float64)
    padded = estimator(torch.cat([rewards, padding], 1), torch.cat([valid, torch.zeros_like(padding).bool()], 1))
    torch.testing.assert_close(padded[:, : rewards.shape[1]], estimator(rewards, valid))
    assert not padded[:, rewards.shape[1] :].any()


@every_estimator
@given(scored())
def test_advantages_of_a_group_cancel(estimator, case):
    sums = estimator(*case).sum(-1)
    torch.testing.assert_close(sums, torch.zeros_like(sums))


@every_estimator
@given(scored())
def test_a_group_lives_exactly_if_its_valid_rewards_differ(estimator, case):
    rewards, valid = case
    differ = [
        len({r.item() for r, v in zip(*group, strict=True) if v}) > 1 for group in zip(rewards, valid, strict=True)
    ]
    assert (estimator(rewards, valid) != 0).any(-1).tolist() == differ


@given(scored())
def test_leave_one_out_is_a_rescaled_centering(case):
    rewards, valid = case
    k = valid.sum(-1, keepdim=True)
    centered = GroupNormalized(std=None)(rewards, valid)
    torch.testing.assert_close(LeaveOneOut()(rewards, valid), centered * k / (k - 1).clamp(min=1))


@every_estimator
@given(scored(), st.randoms(use_true_random=False))
def test_groups_have_no_order(estimator, case, random):
    rewards, valid = case
    order = random.sample(range(len(rewards)), len(rewards))
    torch.testing.assert_close(estimator(rewards[order], valid[order]), estimator(rewards, valid)[order])


@given(scored())
def test_differences_of_the_batch_have_unit_deviation(case):
    rewards, valid = case
    advantages = ReinforcePlusPlusBaseline(eps=0.0)(rewards, valid)
    if advantages.any():
        torch.testing.assert_close(advantages[valid].std(), torch.tensor(1.0, dtype=torch.float64))


@given(scored(), st.sampled_from([0.25, 2.0, 8.0]))
def test_normalization_forgets_the_scale_of_rewards(case, factor):
    rewards, valid = case
    estimator = GroupNormalized(eps=0.0)
    torch.testing.assert_close(estimator(rewards * factor, valid), estimator(rewards, valid))


@given(scored())
def test_normalized_advantages_have_unit_deviation(case):
    rewards, valid = case
    for advantages, counted in zip(GroupNormalized(eps=0.0)(rewards, valid), valid, strict=True):
        if advantages.any():
            torch.testing.assert_close(advantages[counted].std(), torch.tensor(1.0, dtype=torch.float64))
