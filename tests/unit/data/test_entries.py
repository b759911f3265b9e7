"""Entries of the media cache hold any tensors without loss, and say when they are damaged."""

import numpy as np
import pyarrow
import pytest
import torch
from safetensors.numpy import load

from lightning_mmrl.data.media.entries import packed, unpacked

TENSORS = {
    "pixels": torch.randint(0, 256, (12, 30), dtype=torch.uint8),
    "row": torch.tensor([0, 255, 1, 128], dtype=torch.uint8),
    "byte": torch.tensor(200, dtype=torch.uint8),
    "none": torch.zeros(0, 5, dtype=torch.uint8),
    "features": torch.randn(1, 4, 7),
    "grid": torch.tensor([[1, 2, 3]]),
    "flags": torch.tensor([True, False]),
}


def test_every_tensor_comes_back_as_it_was():
    found = unpacked(packed(TENSORS))
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_bytes_are_differences_of_neighbors_modulo_256():
    """The format, by NumPy: 8 bytes of name, 4 of checksum, 8 of length, then zstd of a safetensors file."""
    entry = packed(TENSORS)
    length = int.from_bytes(entry[12:20], "little")
    stored = load(pyarrow.decompress(entry[20:], decompressed_size=length, codec="zstd", asbytes=True))
    pixels = TENSORS["pixels"].numpy().astype(np.int64)
    wanted = np.diff(pixels, axis=1, prepend=0) % 256
    assert np.array_equal(stored["pixels"], wanted)
    assert not np.array_equal(stored["pixels"], pixels)
    assert np.array_equal(stored["features"], TENSORS["features"].numpy())


def test_smooth_pictures_get_smaller_and_noise_no_larger_than_its_header():
    smooth = torch.arange(0, 200, 2).repeat(1000, 1).add(torch.arange(1000)[:, None] % 50).to(torch.uint8)
    assert len(packed({"pixels": smooth})) < smooth.nbytes / 20
    noise = torch.randint(0, 256, (1000, 100), dtype=torch.uint8)
    assert noise.nbytes < len(packed({"pixels": noise})) < noise.nbytes + 1000


@pytest.mark.parametrize("place", [0, 9, 13, 25, -1])
def test_a_changed_byte_is_noticed(place):
    entry = bytearray(packed(TENSORS))
    entry[place] ^= 4
    with pytest.raises((ValueError, OSError)):
        unpacked(bytes(entry))


@pytest.mark.parametrize("length", [0, 5, 19, 20, 60])
def test_a_cut_entry_is_noticed(length):
    with pytest.raises(ValueError, match=r"ends after|checksum"):
        unpacked(packed(TENSORS)[:length])
