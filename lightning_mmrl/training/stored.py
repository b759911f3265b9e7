"""Reads files of a state, which may hold only tensors and primitives."""

import pickle
from pathlib import Path
from typing import Any

import torch

from lightning_mmrl.errors import StageError


def read_stored(path: Path, *, mmap: bool = False) -> Any:
    """Reads a file of a state onto the host.

    Args:
        path: The file.
        mmap: Leave tensors in the file until they are used.

    Raises:
        StageError: The file is missing or damaged, or holds anything but tensors and primitives.
    """
    try:
        return torch.load(path, mmap=mmap, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise StageError(
            f"{path} is not a file of a state, which holds tensors, numbers and texts alone ({reason}); restore the "
            "state, or remove its folder to go on from the one before it"
        ) from error
