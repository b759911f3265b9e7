"""Sharded states: each rank writes its shards of weights and optimizer, and any number of ranks can read them.

torch's distributed checkpoint (DCP) writes the shards, and reads any part of a tensor from the files that have it.
Optimizer state is stored by parameter name. torch's own `get_optimizer_state_dict` is not used: before it loads, it
creates a state for every parameter by a step without gradients, and refuses a checkpoint that lacks one of them. A
parameter that no batch has reached so far has no state, for instance in the tower of a medium that has not occurred.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from lightning_mmrl.errors import StageError
from lightning_mmrl.training.shard_index import IndexReader, read_index
from lightning_mmrl.training.stored import read_stored

REST = "rest.pt"
"""Name of the file, in the folder of the shards, with everything that is not sharded."""

ELEMENTS_AT_ONCE = 2**28
"""Elements of tensors that are read at once, 1 GiB in float32; each read goes through the whole index."""

_WEIGHTS, _OPTIMIZERS = "state_dict", "optimizer_states"


def named_state(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The state dictionary of an optimizer, with the names of parameters in place of their numbers."""
    known = {parameter: name for name, parameter in module.named_parameters()}
    names = [known[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state = optimizer.state_dict()
    groups = [{**group, "params": [names[place] for place in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[place]: values for place, values in state["state"].items()}, "param_groups": groups}


def write_shards(checkpoint: Mapping[str, Any], group: dist.ProcessGroup, folder: Path) -> None:
    """Writes a checkpoint whose shards are spread over the ranks; all ranks of the group call this function.

    Raises:
        CheckpointException: A rank cannot write.
    """
    optimizers = checkpoint[_OPTIMIZERS]
    states = {f"{_OPTIMIZERS}.{number}": optimizer["state"] for number, optimizer in enumerate(optimizers)}
    save({_WEIGHTS: checkpoint[_WEIGHTS], **states}, checkpoint_id=folder, process_group=group)
    if dist.get_rank() == 0:
        rest = {key: value for key, value in checkpoint.items() if key not in (_WEIGHTS, _OPTIMIZERS)}
        torch.save({**rest, _OPTIMIZERS: [optimizer["param_groups"] for optimizer in optimizers]}, folder / REST)


def read_whole(folder: Path) -> dict[str, Any]:
    """Reads a sharded checkpoint into host memory, in the form that a single process would have saved."""
    rest, tensors = read_stored(folder / REST), dict(_stored(folder))
    found = {path: torch.empty(about.size, dtype=about.properties.dtype) for path, about in tensors.items()}
    _load_parts(folder, found, alone=True)
    weights = {path[1]: value for path, value in found.items() if path[0] == _WEIGHTS}
    optimizers = [_by_place(found, number, groups) for number, groups in enumerate(rest[_OPTIMIZERS])]
    return {**rest, _WEIGHTS: weights, _OPTIMIZERS: optimizers}


_Path = tuple[str, ...]
"""Place of a tensor in a checkpoint: ("state_dict", name), or ("optimizer_states.0", name, key)."""


def _load_parts(folder: Path, found: Mapping[_Path, Tensor], *, alone: bool = False) -> None:
    """Reads tensors, or this rank's shards of them, in place; with `alone` no other rank takes part.

    Raises:
        StageError: A part is missing or damaged, or holds something else than a tensor.
    """
    nested: dict[str, Any] = {}
    for (*outer, last), value in found.items():
        inner = nested
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = value
    try:
        with warnings.catch_warnings():
            if alone:
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as intended
            load(nested, storage_reader=IndexReader(folder), no_dist=alone)
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise StageError(
            f"{folder} cannot be read on rank {rank} ({str(cause).partition(chr(10))[0]}); restore the state, or "
            "remove its folder to go on from the one before it"
        ) from error


def _stored(folder: Path) -> Iterator[tuple[_Path, TensorStorageMetadata]]:
    metadata = read_index(folder)
    for flat, about in metadata.state_dict_metadata.items():
        assert isinstance(about, TensorStorageMetadata), f"{flat} is no tensor"
        yield tuple(metadata.planner_data[flat]), about


def stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The whole tensors of a sharded checkpoint by name, read at most `ELEMENTS_AT_ONCE` elements at a time."""
    batches: list[dict[_Path, TensorStorageMetadata]] = [{}]
    for path, about in _stored(folder):
        if sum(each.size.numel() for each in batches[-1].values()) + about.size.numel() > ELEMENTS_AT_ONCE:
            batches.append({})
        batches[-1][path] = about
    for batch in batches:
        found = {path: torch.empty(about.size, dtype=about.properties.dtype) for path, about in batch.items()}
        _load_parts(folder, found, alone=True)
        for path, tensor in found.items():
            yield " ".join(path[1:]), tensor


def load_shards(folder: Path, module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Loads this rank's shards of a checkpoint that any number of ranks wrote, in place; returns everything else."""
    rest = read_stored(folder / REST)
    parameters = dict(module.named_parameters())
    found: dict[_Path, Tensor] = {(_WEIGHTS, name): value for name, value in module.state_dict().items()}
    for path, about in _stored(folder):
        if path[0] != _WEIGHTS:
            like = parameters[path[1]].detach()
            same = like.shape == about.size
            dtype = about.properties.dtype
            found[path] = torch.zeros_like(like, dtype=dtype) if same else torch.empty(about.size, dtype=dtype)
    _load_parts(folder, found)
    for number, (optimizer, groups) in enumerate(zip(optimizers, rest.pop(_OPTIMIZERS), strict=True)):
        optimizer.load_state_dict(_by_place(found, number, groups))
    return rest


def load_whole(checkpoint: dict[str, Any], module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Loads this rank's parts of a checkpoint that a single process wrote, in place; returns everything else."""
    weights = checkpoint.pop(_WEIGHTS)
    targets = module.state_dict()
    module.load_state_dict({name: _placed(weights[name], like) for name, like in targets.items()})
    for optimizer, state in zip(optimizers, checkpoint.pop(_OPTIMIZERS), strict=True):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        placed = {
            place: {key: _placed(value, parameters[place]) for key, value in values.items()}
            for place, values in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": placed})
    return checkpoint


def _placed(value: Any, like: Tensor) -> Any:
    """This rank's part of a whole tensor whose parameter `like` is sharded; any other value unchanged."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    # Each rank has read the file, so nothing must be sent.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _by_place(found: Mapping[_Path, Any], number: int, groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of an optimizer in the form of `torch.optim`, from tensors by parameter name."""
    numbers = {name: place for place, name in enumerate(name for group in groups for name in group["params"])}
    state: dict[int, dict[str, Any]] = {}
    for path, value in found.items():
        if path[0] == f"{_OPTIMIZERS}.{number}":
            state.setdefault(numbers[path[1]], {})[path[2]] = value
    numbered = [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups]
    return {"state": state, "param_groups": numbered}
