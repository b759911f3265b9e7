"""The bytes of one encoded medium on disk: a checked header, and its tensors compressed without loss."""

import struct
import zlib
from collections.abc import Mapping

import pyarrow
import torch
from safetensors.torch import load, save
from torch import Tensor

_HEADER = struct.Struct("<8sIQ")
"""Magic number, CRC-32 of the compressed rest, and its size before it was compressed."""
_MAGIC = b"mmrl-md1"
_CODEC = pyarrow.Codec("zstd", compression_level=1)


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of an entry.

    Bytes of pictures are kept as differences along their last axis, in which neighbors of a row are next to each other:
    zstd makes 0.6 to 0.7 of frames with some noise, and nothing less of the values themselves.
    """
    content = save({name: _differences(tensor) for name, tensor in tensors.items()})
    compressed = _CODEC.compress(content, asbytes=True)
    return _HEADER.pack(_MAGIC, zlib.crc32(compressed), len(content)) + compressed


def unpacked(entry: bytes) -> dict[str, Tensor]:
    """The tensors of an entry.

    Raises:
        ValueError: The entry is damaged, or no entry at all.
    """
    if len(entry) < _HEADER.size:
        raise ValueError(f"it ends after {len(entry)} bytes")
    magic, checksum, num_bytes = _HEADER.unpack_from(entry)
    compressed = memoryview(entry)[_HEADER.size :]
    if magic != _MAGIC:
        raise ValueError("it begins as no entry does")
    if zlib.crc32(compressed) != checksum:
        raise ValueError("its checksum differs")
    content = _CODEC.decompress(compressed, decompressed_size=num_bytes, asbytes=True)
    return {name: _sums(tensor) for name, tensor in load(content).items()}


def _differences(tensor: Tensor) -> Tensor:
    """Bytes minus their neighbors before them, modulo 256; other tensors as they are."""
    if tensor.dtype != torch.uint8 or tensor.dim() == 0:
        return tensor
    found = tensor.clone()
    found[..., 1:] -= tensor[..., :-1]
    return found


def _sums(tensor: Tensor) -> Tensor:
    """The inverse of `_differences`."""
    return tensor.cumsum(-1, dtype=torch.uint8) if tensor.dtype == torch.uint8 and tensor.dim() else tensor
