"""Checks that the tensors of a state are finite: before it is saved, or else before it is used."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_mmrl.models.finite import not_finite
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.training.shards import named_state, stored_tensors
from lightning_mmrl.training.state_store import StoredState
from lightning_mmrl.training.stored import read_stored

CHECKPOINT = "checkpoint"
"""Name of Lightning's part of a state."""

FINITE = "finite"
"""Key of the fact that a state was checked before it was saved; without it the state is checked before use."""

REMEDY = "lower the stage's optimizer.lr and train it with --from-stage, or look at the samples of its last steps"


def saved_weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, in shards if they are sharded; all ranks call it.

    Between a forward and a backward pass a sharded module may hold gathered parameters; `state_dict` shards them again.
    """
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def saved_tensors(module: LightningModule, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Weights of a stage, the state and rates of its optimizers; for sharded tensors the shards of this rank."""
    found = saved_weights(module)
    for number, optimizer in enumerate(optimizers):
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        found[f"the learning rate of optimizer {number}"] = torch.tensor(rates, dtype=torch.float64)
        for name, values in named_state(module, optimizer)["state"].items():
            found |= {f"{key} of {name}": value for key, value in values.items() if isinstance(value, Tensor)}
    return found


def not_finite_anywhere(tensors: Mapping[str, Tensor], ranks: Ranks) -> str | None:
    """Names the first tensor that is not finite on any rank, as "x is not finite"; None if all are finite."""
    names = [name for part in ranks.gather(not_finite(tensors)) for name in part]
    return f"{names[0]} is not finite" if names else None


def check_finite(state: StoredState) -> None:
    """Checks the tensors of a state, unless they were checked when it was saved.

    Raises:
        ValueError: A weight or a tensor of an optimizer's state is not finite.
    """
    if state.facts.get(FINITE):
        return
    for name, tensor in _tensors(state.folder / CHECKPOINT):
        if not_finite({name: tensor}):
            raise ValueError(f"{name} is not finite")


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Weights and optimizer state of a checkpoint, one at a time."""
    if path.is_dir():
        yield from stored_tensors(path)
        return
    checkpoint = read_stored(path, mmap=True)
    yield from checkpoint["state_dict"].items()
    for optimizer in checkpoint["optimizer_states"]:
        for place, values in optimizer["state"].items():
            yield from ((f"{key} of parameter {place}", each) for key, each in values.items() if torch.is_tensor(each))
