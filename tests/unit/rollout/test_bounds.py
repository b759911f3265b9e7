"""Two quantiles decide, and neither is the maximum in half precision."""

import numpy as np
import pytest
import torch

from lightning_mmrl.rollout.bounds import BFLOAT16, EXACT, FLOAT16, USUAL


@pytest.mark.parametrize(("number", "left_out"), [(2, 1), (16, 1), (100, 1), (101, 1), (102, 2), (256, 3), (965, 10)])
def test_the_99th_percentile_leaves_out_the_largest_differences(number, left_out):
    ordered = torch.arange(1, number + 1).float()
    gaps = ordered[torch.randperm(number, generator=torch.Generator().manual_seed(0))]
    median, high = BFLOAT16.quantiles(gaps)
    assert high == number - left_out == np.quantile(ordered.numpy(), 0.99, method="lower")
    assert median == np.quantile(ordered.numpy(), 0.5, method="lower")


def test_in_float32_each_token_counts():
    assert EXACT.quantiles(torch.tensor([0.0, 0.0, 0.0, 5.0])) == (0.0, 5.0)


def test_a_difference_that_is_no_number_is_the_largest():
    assert EXACT.quantiles(torch.tensor([0.0, torch.nan]))[1] == torch.inf


def test_a_bound_of_the_users_own_keeps_the_proportion_and_the_factor():
    own = BFLOAT16.with_high(0.1)
    assert (own.high, own.gross, own.quantile) == (0.1, 3.0, 0.99)
    assert own.median == pytest.approx(0.01, rel=1e-12)
    assert EXACT.with_high(1e-5).median == pytest.approx(1e-5, rel=1e-12)


def test_wider_types_have_narrower_bounds():
    assert {torch.float64: EXACT, torch.float32: EXACT, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16} == USUAL
    assert EXACT.high < FLOAT16.high < BFLOAT16.high
    assert EXACT.gross == 1
