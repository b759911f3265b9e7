import pytest
import torch

from lightning_mmrl.ops.masked import masked_mean, masked_sum

VALUES = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
MASK = torch.tensor([[True, False, True], [False, False, False]])


def test_sum_takes_only_what_the_mask_selects():
    assert masked_sum(VALUES, MASK).item() == 5.0
    assert masked_sum(VALUES, MASK, dim=1).tolist() == [5.0, 0.0]
    assert masked_sum(VALUES, MASK, dim=0).tolist() == [1.0, 0.0, 4.0]


def test_mean_divides_by_the_number_of_selected_values():
    assert masked_mean(VALUES, MASK).item() == 2.5
    assert masked_mean(VALUES, MASK, dim=1).tolist() == [2.5, 0.0]


def test_nothing_selected_gives_zero():
    assert masked_mean(VALUES, torch.zeros_like(MASK)).item() == 0.0


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("reduction", [masked_sum, masked_mean])
def test_masked_garbage_reaches_neither_value_nor_gradient(garbage, reduction):
    values = torch.where(MASK, VALUES, garbage).requires_grad_()
    result = reduction(values, MASK)
    result.backward()
    assert result.item() == reduction(VALUES, MASK).item()
    assert torch.equal(values.grad != 0, MASK)
