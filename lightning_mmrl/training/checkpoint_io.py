"""How Lightning's checkpoint dictionary becomes a file: written once, straight into its place, read without pickles."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.utilities.types import _PATH
from torch.utils._pytree import tree_map_only


class SnapshotIO(CheckpointIO):
    """Keeps a copy of what is saved in memory, to be written later by `write`; loads tensors and primitives alone.

    Lightning's own `TorchCheckpointIO` holds the file a second time in memory and moves it from the system's temporary
    folder (Lightning-AI/pytorch-lightning#21253). Here the copy is what lets training go on while it is written.
    """

    def __init__(self) -> None:
        self._snapshot: dict[str, Any] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Copies the tensors to the host; the folder of `path` is written to by `write`."""
        self._snapshot = tree_map_only(torch.Tensor, _copied, checkpoint)

    def take(self) -> dict[str, Any] | None:
        """What was saved since the last call; None where shards are written and on ranks that do not save."""
        snapshot, self._snapshot = self._snapshot, None
        return snapshot

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint onto the host; anything but tensors and primitives is refused, whatever is asked for."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: _PATH) -> None:
        """Removes the file."""
        Path(path).unlink()


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)
