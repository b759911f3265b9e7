"""Copies between host and device: few, and such that the host waits only for what it reads."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies integers or truth values from the host to a device, all in one transfer.

    The host does not wait: CUDA takes over pageable memory before the call returns.

    >>> to_device([torch.tensor([[1, 2]]), torch.tensor([True])], torch.device("cpu"))
    [tensor([[1, 2]]), tensor([True])]
    """
    if device.type == "cpu":
        return list(tensors)
    moved = _joined(tensors).to(device, non_blocking=True)
    pieces = moved.split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape).to(tensor.dtype) for piece, tensor in zip(pieces, tensors, strict=True)]


def on_device(values: Sequence[int] | Sequence[list[int]], device: torch.device) -> Int[Tensor, "..."]:
    """Whole numbers as a tensor on a device, without a wait of the host.

    >>> on_device([3, 4], torch.device("cpu"))
    tensor([3, 4])
    """
    return torch.tensor(values, dtype=torch.long).to(device, non_blocking=True)


def on_host(tensors: Sequence[Tensor]) -> list[Int[Tensor, "..."]]:
    """Copies integers or truth values to the host, for which it waits once.

    >>> on_host([torch.tensor([[1, 2]]), torch.tensor(True)])
    [tensor([[1, 2]]), tensor(1)]
    """
    if not tensors:
        return []
    pieces = _joined(tensors).cpu().split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def true_places(mask: Bool[Tensor, "*shape"], count: int) -> Int[Tensor, " count"]:
    """The places of the True entries of a flattened mask whose number is known.

    `values.flatten().index_select(0, true_places(mask, count))` equals `values[mask]`, for which the host would have to
    wait until the device has counted them.

    >>> true_places(torch.tensor([[True, False], [True, True]]), 3)
    tensor([0, 2, 3])
    """
    return mask.flatten().nonzero_static(size=count).squeeze(-1)


def placed(values: Float[Tensor, " n"], places: Int[Tensor, " n"], shape: Sequence[int]) -> Float[Tensor, "*shape"]:
    """Values at places of a flattened tensor that is zero elsewhere; the inverse of a selection by `true_places`.

    The result is no view, since FSDP refuses one as the output of a model.

    >>> placed(torch.tensor([5.0, 6.0]), torch.tensor([0, 3]), (2, 2))
    tensor([[5., 0.],
            [0., 6.]])
    """
    return values.new_zeros(math.prod(shape)).index_copy(0, places, values).view(shape).clone()


def _joined(tensors: Sequence[Tensor]) -> Int[Tensor, " n"]:
    return torch.cat([tensor.flatten().long() for tensor in tensors])
