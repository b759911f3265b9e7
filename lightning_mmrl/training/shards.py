"""States whose weights and optimizer lie in shards on all ranks, read again by as many ranks, by more, fewer or one.

Shards are written by torch's distributed checkpoint (DCP), which reads any part of a tensor from whichever files have
it. Optimizers are kept by the names of their parameters. torch's own `get_optimizer_state_dict` is not used: before it
loads it gives every parameter a state by a step without a gradient, and refuses a checkpoint that lacks one, as that of
a token without media in any batch so far.
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
"""File beside the shards with all that is small."""

ELEMENTS_AT_ONCE = 2**28
"""Elements of tensors that are put together at once: 1 GiB in float32. Each read looks at the metadata of all."""

_WEIGHTS, _OPTIMIZERS = "state_dict", "optimizer_states"


def named_state(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """What `torch.optim` says of its state, with the names of parameters in place of their numbers."""
    known = {parameter: name for name, parameter in module.named_parameters()}
    names = [known[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state = optimizer.state_dict()
    groups = [{**group, "params": [names[place] for place in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[place]: values for place, values in state["state"].items()}, "param_groups": groups}


def write_shards(checkpoint: Mapping[str, Any], group: dist.ProcessGroup, folder: Path) -> None:
    """Writes a checkpoint of which every rank has its own shards; all ranks of the group call it.

    Raises:
        CheckpointException: Any rank cannot write.
    """
    optimizers = checkpoint[_OPTIMIZERS]
    states = {f"{_OPTIMIZERS}.{number}": optimizer["state"] for number, optimizer in enumerate(optimizers)}
    save({_WEIGHTS: checkpoint[_WEIGHTS], **states}, checkpoint_id=folder, process_group=group)
    if dist.get_rank() == 0:
        rest = {key: value for key, value in checkpoint.items() if key not in (_WEIGHTS, _OPTIMIZERS)}
        torch.save({**rest, _OPTIMIZERS: [optimizer["param_groups"] for optimizer in optimizers]}, folder / REST)


def read_whole(folder: Path) -> dict[str, Any]:
    """A checkpoint in shards, put together in host memory as a single process would have saved it."""
    rest, tensors = read_stored(folder / REST), dict(_stored(folder))
    found = {path: torch.empty(about.size, dtype=about.properties.dtype) for path, about in tensors.items()}
    _fill(folder, found)
    weights = {path[1]: value for path, value in found.items() if path[0] == _WEIGHTS}
    optimizers = [_by_place(found, number, groups) for number, groups in enumerate(rest[_OPTIMIZERS])]
    return {**rest, _WEIGHTS: weights, _OPTIMIZERS: optimizers}


_Path = tuple[str, ...]
"""Where a tensor is in a checkpoint: ("state_dict", name), or ("optimizer_states.0", name, key)."""


def _fill(folder: Path, found: Mapping[_Path, Tensor]) -> None:
    """Reads whole tensors in place, by this process alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is asked to be
        _load_parts(folder, found, no_dist=True)


def _load_parts(folder: Path, found: Mapping[_Path, Tensor], *, no_dist: bool = False) -> None:
    """Reads what this rank has of tensors, in place.

    Raises:
        StageError: A part is missing or damaged, or holds something else than a tensor.
    """
    try:
        load(_nested(found), storage_reader=IndexReader(folder), no_dist=no_dist)
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
    """The tensors of a checkpoint in shards, put together some at a time, by name."""
    found: dict[_Path, Tensor] = {}
    for path, about in _stored(folder):
        if sum(tensor.numel() for tensor in found.values()) + about.size.numel() > ELEMENTS_AT_ONCE:
            yield from _read(folder, found)
            found = {}
        found[path] = torch.empty(about.size, dtype=about.properties.dtype)
    yield from _read(folder, found)


def _read(folder: Path, found: Mapping[_Path, Tensor]) -> Iterator[tuple[str, Tensor]]:
    _fill(folder, found)
    return ((" ".join(path[1:]), tensor) for path, tensor in found.items())


def load_shards(folder: Path, module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Loads this rank's shards of a checkpoint of any number of ranks, in place; returns what is small in it."""
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
    """Loads this rank's parts of a checkpoint of a single process; returns what is small in it."""
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
    """This rank's part of a whole tensor that belongs to a sharded one; anything else as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    # Each rank has read the file: nothing needs to be sent.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _by_place(found: Mapping[_Path, Any], number: int, groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of an optimizer as `torch.optim` takes it, from tensors by name."""
    numbers = {name: place for place, name in enumerate(name for group in groups for name in group["params"])}
    state: dict[int, dict[str, Any]] = {}
    for path, value in found.items():
        if path[0] == f"{_OPTIMIZERS}.{number}":
            state.setdefault(numbers[path[1]], {})[path[2]] = value
    numbered = [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups]
    return {"state": state, "param_groups": numbered}


def _nested(found: Mapping[_Path, Tensor]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for (*outer, last), value in found.items():
        inner = nested
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return nested
