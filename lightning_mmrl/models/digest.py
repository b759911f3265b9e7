"""A hash of the weights that train, computed on their device: it tells whether a stage changed any of them."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lightning_mmrl.protocols.ranks import Ranks

CHUNK, DEVICE_CHUNK = 2**16, 2**22
"""Entries that are hashed at once, as 64-bit integers: on a CPU as many as its cache holds, elsewhere 32 MiB."""

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer types by the width in bytes of a tensor's entries."""

FACTORS = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
"""Odd 64-bit factors of splitmix64 (doi:10.1145/2660193.2660195), as signed numbers."""


def weight_digest(module: nn.Module, ranks: Ranks) -> str:
    """Hash of the parameters that train; it does not depend on how they are sharded. All ranks call it."""
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    weights = module.state_dict()  # this shards the weights that a forward pass has gathered
    trained = {name: weights[name] for name in names}
    own = entry_digests(list(trained.values()))
    parts = ranks.gather(own) if any(isinstance(each, DTensor) for each in trained.values()) else [own]
    joined = [sum(column) % 2**64 for column in zip(*parts, strict=True)]
    return hashlib.sha256(repr(list(zip(trained, joined, strict=True))).encode()).hexdigest()


def entry_digests(tensors: Sequence[Tensor]) -> list[int]:
    """For each tensor, the sum modulo 2**64 of a hash of each entry's bits and place.

    For a sharded tensor it is the sum over this rank's shard; the sums of all ranks add up to the digest of the whole
    tensor. The host waits for the device once.

    >>> one, other = entry_digests([torch.zeros(4), torch.full((4,), 1e-3)])
    >>> one == other
    False
    """
    found: list[Tensor] = []
    for tensor in tensors:
        local, first = tensor.detach(), 0
        if isinstance(tensor, DTensor):
            local = tensor.to_local().detach()
            # The place of this rank's first entry in the whole tensor.
            shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
            assert tuple(shape[1:]) == tuple(tensor.shape[1:]), "weights are sharded by their first dimension alone"
            first = offset[0] * tensor.shape[1:].numel()
        total = torch.zeros((), dtype=torch.int64, device=local.device)
        size = CHUNK if local.device.type == "cpu" else DEVICE_CHUNK
        for number, chunk in enumerate(local.reshape(-1).split(size) if local.numel() else ()):
            start = first + number * size
            # Integers overflow modulo 2**64. A product carries bits up only; the shift brings upper bits down.
            hashes = torch.arange(start, start + len(chunk), device=local.device).mul_(FACTORS[0])
            hashes.bitwise_xor_(chunk.view(BITS[chunk.element_size()])).mul_(FACTORS[1])
            total += hashes.bitwise_xor_(hashes >> 32).mul_(FACTORS[2]).sum()
        found.append(total)
    if not found:
        return []
    return [each % 2**64 for each in torch.stack([each.to(found[0].device) for each in found]).tolist()]
