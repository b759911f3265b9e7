import math

import pytest
import torch

from lightning_mmrl.ops.groups import (
    batch_std,
    constant_groups,
    group_mean,
    group_std,
)

NAN = math.nan
REWARDS = torch.tensor([[1.0, 2.0, 6.0, NAN], [5.0, NAN, NAN, NAN], [NAN] * 4])
VALID = ~REWARDS.isnan()


def test_mean_is_over_valid_entries():
    assert group_mean(REWARDS, VALID).tolist() == [3.0, 5.0, 0.0]


def test_std_is_the_unbiased_one_over_valid_entries():
    assert group_std(REWARDS, VALID).tolist() == pytest.approx([math.sqrt(7.0), 0.0, 0.0])


def test_groups_are_constant_when_equal_or_too_small():
    rewards = torch.tensor([[0.1, 0.1, 9.0], [0.1, 0.1 + 1e-7, 9.0], [4.0, 5.0, 6.0], [1.0, 2.0, 3.0]])
    valid = torch.tensor([[True, True, False], [True, True, False], [False, True, False], [False, False, False]])
    assert constant_groups(rewards, valid).tolist() == [True, False, True, True]


def test_a_valid_nan_is_not_taken_for_a_constant_group():
    assert constant_groups(torch.tensor([[NAN, 1.0]]), torch.ones(1, 2, dtype=torch.bool)).tolist() == [False]


@pytest.mark.parametrize("num_valid", [0, 1])
def test_a_batch_with_fewer_than_two_valid_entries_has_no_deviation(num_valid):
    valid = torch.arange(4).reshape(2, 2) < num_valid
    assert batch_std(torch.tensor([[3.0, 5.0], [7.0, 9.0]]), valid) == 0.0
