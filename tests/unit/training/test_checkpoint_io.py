"""A checkpoint that is written at once needs no copy; one that is written later is not changed by training."""

import pytest
import torch
from live_bytes import LiveBytes

from lightning_mmrl.training.checkpoint_io import SnapshotIO
from lightning_mmrl.training.stored import read_stored

SIZE = 4 * 2**18


@pytest.fixture
def checkpoint():
    weight = torch.arange(2**18, dtype=torch.float32)
    return {"state_dict": {"head": weight, "embedding": weight}, "step": 3}


def written(io, checkpoint, path):
    with LiveBytes([checkpoint["state_dict"]["head"]]) as live:
        io.save_checkpoint(checkpoint, path)
        checkpoint["state_dict"]["head"] += 1
        io.take()(path)
    return read_stored(path), live.peak


def test_without_copies_the_tensors_themselves_are_written(checkpoint, tmp_path):
    found, peak = written(SnapshotIO(copies=False), checkpoint, tmp_path / "state")
    assert peak == SIZE
    assert torch.equal(found["state_dict"]["head"], torch.arange(2**18) + 1.0)
    assert (tmp_path / "state").stat().st_size < 1.1 * SIZE, "a tied weight is written once"
    assert found["step"] == 3


def test_with_copies_a_later_change_is_not_written(checkpoint, tmp_path):
    found, peak = written(SnapshotIO(), checkpoint, tmp_path / "state")
    assert peak == 3 * SIZE
    assert torch.equal(found["state_dict"]["head"], torch.arange(2**18, dtype=torch.float32))


@pytest.mark.parametrize("copies", [False, True])
def test_a_part_of_a_storage_is_written_alone(copies, tmp_path):
    whole = torch.arange(2**18, dtype=torch.float32)
    io = SnapshotIO(copies=copies)
    io.save_checkpoint({"part": whole[5:10]}, tmp_path / "state")
    io.take()(tmp_path / "state")
    assert torch.equal(read_stored(tmp_path / "state")["part"], whole[5:10])
    assert (tmp_path / "state").stat().st_size < 10_000
