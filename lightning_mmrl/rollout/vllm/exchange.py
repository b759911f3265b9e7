"""A folder that passes weights from a trainer to a server, and to which nobody else can write."""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_mmrl.errors import RolloutError

FILE_BYTES = 2**30
"""Largest size of a file, unless one weight is larger; the buffer of a trainer holds one file."""
ALIGNMENT = 64
"""Bytes; each weight begins at a multiple of them, which suits every type."""

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


class HostBuffer:
    """Host memory that the weights of every push pass through, one file after the other; it is allocated once.

    For weights on CUDA it is pinned, so that the device writes into it while the host goes on to the next weight.

    Args:
        sizes: Bytes of each weight. The buffer has `FILE_BYTES`, less if all are smaller, more if one alone is larger.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.num_bytes = max(max(sizes, default=0), min(FILE_BYTES, sum(map(_aligned, sizes))))
        self._memory: Tensor | None = None
        self._end = 0

    def fits(self, tensor: Tensor) -> bool:
        """Whether there is room for a tensor; there is in an empty buffer."""
        return self._end + tensor.nbytes <= self.num_bytes

    def take(self, tensor: Tensor) -> Tensor:
        """Copies a tensor; the copy is there after `wait`, and until `clear`."""
        if self._memory is None:
            self._memory = _allocated(self.num_bytes, pinned=tensor.is_cuda)
        place = self._memory[self._end : self._end + tensor.nbytes]
        self._end += _aligned(tensor.nbytes)
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)

    def wait(self) -> None:
        """Waits for the copies from CUDA."""
        if self._memory is not None and self._memory.is_pinned():
            torch.cuda.synchronize()

    def clear(self) -> None:
        """Gives the room to other tensors."""
        self._end = 0


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _allocated(num_bytes: int, *, pinned: bool) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)


def write_files(weights: Iterable[tuple[str, Tensor]], folder: Path, buffer: HostBuffer) -> None:
    """Writes tensors to numbered safetensors files, each of what the buffer holds."""
    held: dict[str, Tensor] = {}
    paths = (folder / f"{number:05}.safetensors" for number in count())

    def write() -> None:
        if held:
            buffer.wait()
            save_file(held, next(paths))
            held.clear()
        buffer.clear()

    for name, tensor in weights:
        if not buffer.fits(tensor):
            write()
        # A copy also of a tensor on the host: a file cannot hold two that share memory, as tied weights do.
        held[name] = buffer.take(tensor.detach())
    write()
