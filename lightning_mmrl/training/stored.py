"""Files of a state, read as tensors and primitives alone; a file that names anything else is refused in a sentence."""

import pickle
from pathlib import Path
from typing import Any

import torch

from lightning_mmrl.errors import StageError


def read_stored(path: Path, *, mmap: bool = False) -> Any:
    """What a file of a state holds, on the host.

    Args:
        path: The file.
        mmap: Leave tensors in the file until they are used.

    Raises:
        StageError: It is missing or damaged, or holds more than tensors and primitives.
    """
    try:
        return torch.load(path, mmap=mmap, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise StageError(
            f"{path} is not a file of a state, which holds tensors, numbers and texts alone ({reason}); restore the "
            "state, or remove its folder to go on from the one before it"
        ) from error
