"""Implements `Ranks` over the default process group of torch.distributed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

BUCKET_ELEMENTS = 2**25
"""Gradient elements summed at once; limits the copy that is sent to 128 MiB in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRanks:
    """The default process group, which exists once a trainer has started; implements `Ranks`.

    Attributes:
        lockstep: True if weights are sharded, so that passes through the model are collectives and the backward pass
            sums gradients. If False, `sum_gradients` sums them once per optimizer step, however many microbatches the
            step has.
    """

    lockstep: bool

    @property
    def rank(self) -> int:
        """The number of this process."""
        return dist.get_rank()

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return dist.get_world_size()

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over the ranks."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max(self, value: int) -> int:
        """The largest value of any rank."""
        return int(self._reduced(torch.tensor(value), dist.ReduceOp.MAX))

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is True on any rank."""
        if not flags:
            return []
        found = self._reduced(torch.tensor(list(flags), dtype=torch.uint8), dist.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    def gather(self, item: T) -> list[T]:
        """The items of all ranks; they are pickled."""
        items: list[Any] = [None] * self.world_size
        dist.all_gather_object(items, item)
        return items

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by its sum over the ranks, in buckets; a rank without a gradient adds zeros."""
        if self.lockstep:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        anywhere = self.any([parameter.grad is not None for parameter in trained])
        chosen = [parameter for parameter, found in zip(trained, anywhere, strict=True) if found]
        for parameter in chosen:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in chosen if parameter.grad is not None]):
            together = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(together)
            for gradient, piece in zip(bucket, together.split([each.numel() for each in bucket]), strict=True):
                gradient.copy_(piece.view_as(gradient))

    def _reduced(self, values: Tensor, operation: Any) -> Tensor:
        # NCCL accepts only tensors on its own device.
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        moved = values.detach().to(device, copy=True)
        dist.all_reduce(moved, operation)
        return moved.to(values.device)


def _buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Buckets of gradients of one type, each of a bounded size or of one gradient."""
    buckets: list[list[Tensor]] = []
    room = 0
    for gradient in gradients:
        if not buckets or gradient.numel() > room or buckets[-1][0].dtype != gradient.dtype:
            buckets.append([])
            room = BUCKET_ELEMENTS
        buckets[-1].append(gradient)
        room -= gradient.numel()
    return buckets
