"""The weights of a policy as an engine wants them: whole, merged, under the names of a checkpoint, one at a time."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_mmrl.models.policy import Policy


class GatheredState(Mapping[str, Tensor]):
    """Parameters and persistent buffers of a module, each gathered from the ranks when it is read.

    All ranks read the same names in the same order. Nothing is kept: at no time is more than one tensor whole that was
    not whole before.
    """

    def __init__(self, module: nn.Module) -> None:
        self._state = module.state_dict()

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._state[name].detach()
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


class PolicyWeights:
    """Names and weights of the plain model, one at a time: an adapter is merged into them, and stays as it is.

    All ranks walk through the weights of a sharded policy together. `walk` starts over; whoever shares one walk goes on
    where the other stopped.

    Args:
        policy: Its weights.
        prefix: What names begin with in a checkpoint of the family (`Family.engine_prefix`).
    """

    def __init__(self, policy: Policy, prefix: str = "") -> None:
        self._policy, self._prefix = policy, prefix

    def walk(self) -> Iterator[tuple[str, Tensor]]:
        """All weights, whole."""
        return self._named(GatheredState(self._policy.model))

    def described(self) -> list[tuple[str, Tensor]]:
        """The same names with tensors of the same shapes and dtypes that hold nothing; nothing is gathered."""
        state = self._policy.model.state_dict()
        return list(self._named({name: torch.empty_like(_whole(item), device="meta") for name, item in state.items()}))

    def _named(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        adapter = self._policy.adapter
        for name, tensor in state.items() if adapter is None else adapter.merging(state):
            yield f"{self._prefix}{name}", tensor


def _whole(tensor: Tensor) -> Tensor:
    """A tensor of the size that all shards have together, without their data."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") if isinstance(tensor, DTensor) else tensor
