"""Checks whether tensors hold finite numbers only, with one read of each and without a copy."""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm


def all_finite(tensors: Iterable[Tensor]) -> Bool[Tensor, ""]:
    """True if no floating-point tensor holds NaN or an infinity; of a sharded tensor, this rank's shard counts.

    The largest magnitude of all entries decides; it is NaN if any entry is. So no tensor of the size of the inputs is
    made, and nothing waits for the device.

    >>> all_finite([torch.ones(2), torch.tensor([1, 2])]), all_finite([torch.ones(2), torch.tensor([torch.nan])])
    (tensor(True), tensor(False))
    """
    floating = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in floating]
    filled = [tensor for tensor in local if tensor.numel()]
    if not filled:
        return torch.tensor(True)
    return get_total_norm(filled, norm_type=torch.inf).isfinite()


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or an infinity, in order; of a sharded tensor, this rank's shard counts.

    >>> not_finite({"first": torch.ones(2), "second": torch.tensor([torch.inf])})
    ['second']
    """
    if bool(all_finite(tensors.values())):
        return []
    return [name for name, tensor in tensors.items() if not bool(all_finite([tensor]))]
