"""Checkpoint plugin for Lightning: writes each file once, at its final place, and reads it without pickles."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.utilities.types import _PATH
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from lightning_mmrl.machine import refusal
from lightning_mmrl.training.shards import read_whole
from lightning_mmrl.training.stored import read_stored


class SnapshotIO(CheckpointIO):
    """Holds a checkpoint in memory, to be written later; loads only tensors and primitives.

    With `copies` training can go on while it is written. Without, the tensors themselves are written, one after the
    other, and must not change until then; this saves host memory of the state's size.

    Lightning's own `TorchCheckpointIO` holds the file a second time in
    memory and moves it from the system's temporary folder (Lightning-AI/pytorch-lightning#21253).
    """

    _write: Callable[[Path], None] | None = None

    def __init__(self, *, copies: bool = True) -> None:
        self._hold = _copied if copies else _compact

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Keeps the checkpoint, to be written to one file."""
        self.save_with(torch.save, checkpoint)

    def save_with(self, write: Callable[..., None], checkpoint: dict[str, Any], *arguments: Any) -> None:
        """Keeps the checkpoint, to be written by `write(checkpoint, *arguments, path)`.

        If there is no memory for the copy, the later write fails instead: no state is saved, and training goes on.
        """
        try:
            held = tree_map_only(torch.Tensor, self._hold, checkpoint)
            self._write = partial(write, held, *arguments)
        except (MemoryError, RuntimeError) as error:
            found = refusal(error)
            if found is None or not found.memory:
                raise
            self._write = partial(_fail, found.error())

    def take(self) -> Callable[[Path], None] | None:
        """Returns the function that writes the last checkpoint to a path; None on ranks that have nothing to write."""
        write, self._write = self._write, None
        return write

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint onto the host; anything but tensors and primitives is refused, whatever the arguments.

        Shards are joined, so that one device can resume a stage that was saved on several.
        """
        if Path(path).is_dir():
            return read_whole(Path(path))
        return read_stored(Path(path))

    def remove_checkpoint(self, path: _PATH) -> None:
        """Removes the file."""
        Path(path).unlink()


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or a copy of one that is a part of a larger storage, which would be written as a whole."""
    tensor = tensor.detach()
    if isinstance(tensor, DTensor) or tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone()


def _fail(error: Exception, path: Path) -> None:
    raise error
