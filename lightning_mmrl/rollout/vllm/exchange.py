"""A folder that passes weights from a trainer to a server, and to which nobody else can write."""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_mmrl.errors import RolloutError

FILE_BYTES = 2**30
"""Size at which a file is closed and the next one begun; a push holds up to this much in memory."""

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def opened(folder: Path, owner: int) -> Iterator[Path]:
    """Checks a folder and yields a path to it that cannot be redirected while the context is open.

    Args:
        folder: The folder with the weights.
        owner: The id of the user that owns it as the trainer sees it.

    Raises:
        RolloutError: The path is no folder, another user owns the folder, or others can write to it.
    """
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise RolloutError(
            f"{folder} is no folder that the server can read ({error}); rollout.settings.server.exchange_dir must be "
            "one that both sides see"
        ) from error
    try:
        facts = os.fstat(held)
        if facts.st_uid != owner:
            raise RolloutError(f"{folder} belongs to user {facts.st_uid}, and the trainer wrote as {owner}")
        if facts.st_mode & OTHERS_WRITE:
            raise RolloutError(f"{folder} has mode {stat.S_IMODE(facts.st_mode):03o}, so other users can write to it")
        yield Path(f"/proc/self/fd/{held}")
    finally:
        os.close(held)


def stored_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of all safetensors files of a folder, in the order of their names."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  the file is no mapping
                yield name, file.get_tensor(name)


def write_files(weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Writes tensors to numbered safetensors files of about `FILE_BYTES`; one file at a time is held in memory."""
    held: dict[str, Tensor] = {}
    paths = (folder / f"{number:05}.safetensors" for number in count())
    for name, tensor in weights:
        # A safetensors file cannot hold two tensors that share memory, as tied weights do.
        held[name] = tensor.detach().to("cpu", copy=True).contiguous()
        if sum(each.nbytes for each in held.values()) >= FILE_BYTES:
            save_file(held, next(paths))
            held.clear()
    if held:
        save_file(held, next(paths))
