"""Gives an engine a policy's weights: whole, merged, under the names of a checkpoint, and one at a time."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_mmrl.models.policy import Policy


class GatheredState(Mapping[str, Tensor]):
    """Parameters and persistent buffers of a module, each gathered from the ranks when it is read.

    All ranks read the same names in the same order. No gathered tensor is kept, so that at most one is in memory at a
    time.
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
    """Names and weights of the plain model, one at a time, in the type that the policy computes in.

    An adapter is merged into these, and the policy stays as it is. All ranks go through the weights of a sharded policy
    together.

    Args:
        policy: The policy with the weights.
        prefix: Names start with this in a checkpoint of the family (`Family.engine_prefix`).
    """

    def __init__(self, policy: Policy, prefix: str = "") -> None:
        self._policy, self._prefix = policy, prefix

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """All weights, whole; each call starts over."""
        return self._named(GatheredState(self._policy.model))

    def described(self) -> list[tuple[str, Tensor]]:
        """The same names with empty tensors of the same shapes and dtypes, for which nothing is gathered."""
        state = self._policy.model.state_dict()
        # A sharded tensor has the shape of the whole one.
        empty = {name: torch.empty(each.shape, dtype=each.dtype, device="meta") for name, each in state.items()}
        return list(self._named(empty))

    def _named(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        adapter = self._policy.adapter
        for name, tensor in state.items() if adapter is None else adapter.merging(state):
            kept = tensor.to(self._policy.compute_dtype) if tensor.is_floating_point() else tensor
            yield f"{self._prefix}{name}", kept


def pushed_bytes(policy: Policy) -> int:
    """Bytes of the weights that a policy sends to an engine; tied weights count once, and an adapter adds none."""
    added = set() if policy.adapter is None else {id(each) for each in policy.adapter.parameters()}
    own = [each.numel() for each in policy.model.parameters() if id(each) not in added]
    return sum(own) * policy.compute_dtype.itemsize


class WeightStream:
    """One pass over a policy's weights: each reader continues where the last one stopped.

    Attributes:
        weights: All weights of the pass.
        num_read: Weights read so far.
    """

    def __init__(self, weights: PolicyWeights) -> None:
        self.weights, self._items = weights, weights.items()
        self.num_read = 0

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for item in self._items:
            self.num_read += 1
            yield item

    def finish(self) -> None:
        """Reads to the end: ranks that send nothing still have to gather each tensor with the others."""
        for _ in self:
            pass
