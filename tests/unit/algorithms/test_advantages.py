import math

import pytest
import torch

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


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_a_constant_group_gets_exact_zeros(estimator):
    # 0.1 is not a float: the mean of seven of them is not 0.1.
    rewards = torch.full((1, 7), 0.1)
    assert not torch.any(estimator(rewards, torch.ones(1, 7, dtype=torch.bool)))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_a_group_with_fewer_than_two_valid_completions_gets_exact_zeros(estimator):
    valid = torch.tensor([[True, False, False], [False, False, False]])
    assert not torch.any(estimator(torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]), valid))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_a_tiny_difference_is_still_a_difference(estimator):
    rewards = torch.tensor([[0.0, 1e-6]])
    advantages = estimator(rewards, torch.ones(1, 2, dtype=torch.bool))
    assert advantages[0, 0] < 0 < advantages[0, 1]


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e6])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_an_invalid_reward_leaves_its_group(estimator, garbage):
    rewards = torch.tensor([[1.0, garbage, 0.0, 0.25]])
    advantages = estimator(rewards, torch.tensor([[True, False, True, True]]))
    alone = estimator(torch.tensor([[1.0, 0.0, 0.25]]), torch.ones(1, 3, dtype=torch.bool))
    assert advantages[0, 1] == 0
    torch.testing.assert_close(advantages[:, [0, 2, 3]], alone)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_a_valid_nan_is_not_hidden(estimator):
    advantages = estimator(torch.tensor([[math.nan, 1.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool))
    assert advantages.isnan().any()


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_better_completions_get_larger_advantages(estimator):
    advantages = estimator(torch.tensor([[0.0, 1.0, 2.0]]), torch.ones(1, 3, dtype=torch.bool))
    assert advantages[0, 0] < 0 < advantages[0, 2]


def test_a_constant_group_beside_others_gets_exact_zeros_also_from_statistics_of_the_batch():
    rewards = torch.tensor([[0.1] * 3, [1.0, 0.0, 2.0]])
    for estimator in ESTIMATORS:
        advantages = estimator(rewards, torch.ones(2, 3, dtype=torch.bool))
        assert not advantages[0].any()
        assert advantages[1].any()


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (GroupNormalized, {}),
        (GroupNormalized, {"std": "batch"}),
        (LeaveOneOut, {"normalize": True}),
        (ReinforcePlusPlusBaseline, {}),
    ],
)
def test_eps_may_be_zero(make, settings):
    """Two rewards are then a standard deviation apart, times the square root of two; equal ones are still zero."""
    estimator = make(eps=0.0, **settings)
    advantages = estimator(torch.tensor([[3.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool))
    assert advantages[0].tolist() == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)])
    assert estimator(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("estimator", "spread"),
    [
        (GroupNormalized(), math.sqrt(2)),
        (GroupNormalized(std="batch"), math.sqrt(2)),
        (LeaveOneOut(normalize=True), math.sqrt(8)),
        (ReinforcePlusPlusBaseline(), math.sqrt(2)),
    ],
    ids=repr,
)
def test_eps_is_a_ten_thousandth_by_default(estimator, spread):
    rewards = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    found = estimator(rewards, torch.ones(1, 2, dtype=torch.bool))[0, 0].item()
    assert found == pytest.approx(math.sqrt(0.5) * spread / (spread + 1e-4), rel=1e-9)


@pytest.mark.parametrize("make", [GroupNormalized, LeaveOneOut, ReinforcePlusPlusBaseline])
def test_a_negative_eps_is_refused(make):
    with pytest.raises(ValueError, match=r"eps is -0\.1"):
        make(eps=-0.1)


def test_a_deviation_of_nothing_known_is_refused():
    with pytest.raises(ValueError, match="std is 'rank'; it must be group, batch or null"):
        GroupNormalized(std="rank")
