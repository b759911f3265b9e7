"""The weights of a policy as an engine wants them: whole, merged, under the names of a checkpoint, one at a time."""

from collections.abc import Iterator, Mapping

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


def pushed_weights(policy: Policy, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Names and weights of the plain model: an adapter is merged into them on the way, and stays as it is.

    Args:
        policy: Its weights may be sharded; all ranks walk through the weights together then.
        prefix: What names begin with in a checkpoint of the family (`Family.engine_prefix`).
    """
    state = GatheredState(policy.model)
    weights = policy.adapter.merging(state) if policy.adapter is not None else state.items()
    for name, tensor in weights:
        yield f"{prefix}{name}", tensor
