"""NaN and infinity are found in weights, states and files."""

import pytest
import torch

from lightning_mmrl.models.finite import all_finite, not_finite

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("others", [torch.inf, -torch.inf, 1.0])
def test_any_entry_of_any_tensor_is_found(dtype, value, others):
    """Beside infinities as well, whose largest magnitude must not hide NaN."""
    broken = torch.tensor([1.0, others, value], dtype=dtype)
    for tensors in ([broken], [torch.ones(2), broken], [broken, torch.ones(2, dtype=torch.float64)]):
        assert not bool(all_finite(tensors))
    assert not_finite({"good": torch.ones(2), "bad": broken, "empty": torch.zeros(0)}) == ["bad"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers_of_a_type_are_finite(dtype):
    largest = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    assert bool(all_finite([largest, -largest, torch.tensor(torch.finfo(dtype).tiny, dtype=dtype)]))


def test_nothing_and_whole_numbers_are_finite():
    assert bool(all_finite([]))
    assert bool(all_finite([torch.zeros(0), torch.tensor([2**62])]))
