"""Transfers are one for many tensors, keep shapes and types, and select and place what a mask would."""

import device_stand_in as stand_in
import pytest
import torch
from device_stand_in import DEVICE, Log

from lightning_mmrl.ops.transfer import on_device, on_host, placed, to_device, true_places

HELD = [torch.arange(6).view(2, 3), torch.tensor([[True], [False]]), torch.zeros(0, dtype=torch.long), torch.tensor(7)]


def assert_equal(found, expected):
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("device", [torch.device("cpu"), DEVICE], ids=str)
def test_many_tensors_go_over_and_back_in_one_transfer_each(device):
    log = Log()
    with stand_in.device_stand_in(log):
        there = to_device(HELD, device)
        assert not log.waits
        back = on_host(there)
    assert {tensor.device for tensor in there} == {device}
    assert log.waits.total() == (device == DEVICE)
    assert log.kernels["copy (to)"] == (device == DEVICE)
    for moved, found, expected in zip(there, back, HELD, strict=True):
        assert_equal(moved.cpu(), expected)
        assert_equal(found, expected.long())


def test_numbers_go_over_without_a_wait():
    log = Log()
    with stand_in.device_stand_in(log):
        there, none = on_device([[1, 2], [3, 4]], DEVICE), on_device([], DEVICE)
    assert not log.waits
    assert there.cpu().tolist() == [[1, 2], [3, 4]]
    assert none.cpu().tolist() == []
    assert none.dtype == torch.long


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_places_select_and_place_what_the_mask_does(share):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(5, 7, generator=generator) < share
    values = torch.randn(5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    places = true_places(mask, int(mask.sum()))
    chosen = values.flatten().index_select(0, places)
    assert torch.equal(chosen, values[mask])
    found, expected = placed(chosen, places, mask.shape), torch.zeros_like(values).masked_scatter(mask, values[mask])
    assert torch.equal(found, expected)
    assert not found._is_view()
    weights = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((table * weights).sum(), values)[0] for table in (found, expected))
    assert torch.equal(ours, theirs)
