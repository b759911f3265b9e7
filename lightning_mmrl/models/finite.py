"""Whether tensors hold finite numbers only: one read each, without a copy."""

from collections.abc import Iterable, Mapping

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


def _local(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
