"""Whether tensors hold finite numbers only, and whether their bits have changed: one read each, without a copy."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm


def all_finite(tensors: Iterable[Tensor]) -> Bool[Tensor, ""]:
    """True if no floating-point tensor holds NaN or an infinity; of sharded tensors, in the shards of this rank.

    The largest magnitude of all entries is taken, which NaN survives: no tensor of the size of the inputs is made, and
    nothing waits for the device.

    >>> all_finite([torch.ones(2), torch.tensor([1, 2])]), all_finite([torch.ones(2), torch.tensor([torch.nan])])
    (tensor(True), tensor(False))
    """
    local = [_local(tensor) for tensor in tensors if tensor.is_floating_point()]
    filled = [tensor for tensor in local if tensor.numel()]
    if not filled:
        return torch.tensor(True)
    return get_total_norm(filled, norm_type=torch.inf).isfinite()


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or an infinity, in order; of sharded tensors, in the shards of this rank.

    >>> not_finite({"first": torch.ones(2), "second": torch.tensor([torch.inf])})
    ['second']
    """
    if bool(all_finite(tensors.values())):
        return []
    return [name for name, tensor in tensors.items() if not bool(all_finite([tensor]))]


def bit_digests(tensors: Sequence[Tensor]) -> list[int]:
    """The exclusive or over the bits of the entries of each tensor, in 64 bits; of sharded tensors over this rank's.

    The digest of a sharded tensor is the exclusive or of what the ranks find. The device is waited for once.

    >>> before = bit_digests([torch.ones(3), torch.zeros(2)])
    >>> before == bit_digests([torch.ones(3), torch.tensor([0.0, 1e-30])])
    False
    """
    found = [_digest(_local(tensor)) for tensor in tensors]
    return torch.stack([each.to(found[0].device) for each in found]).tolist() if found else []


def _digest(tensor: Tensor) -> Tensor:
    nothing = torch.zeros((), dtype=torch.int64, device=tensor.device)
    return torch.hash_tensor(tensor).view(torch.int64) if tensor.numel() else nothing


def _local(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
