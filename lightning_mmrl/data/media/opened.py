"""A medium's file, opened once: what was checked is what decoders, header readers and hashes get.

A name can be given to another file between a check and an opening. So the checks look at the open descriptor, and
whoever reads afterwards reads from that descriptor.
"""

import hashlib
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

from lightning_mmrl.errors import MediaError

P = ParamSpec("P")
T = TypeVar("T")

_BUFFER = 64 * 1024


class Identity(NamedTuple):
    """Which file a name led to, and the state of its content.

    Attributes:
        device: What holds it.
        inode: Its number there.
        size: Bytes.
        changed_ns: When anything about it changed last; unlike its modification time, nobody can set it back.
    """

    device: int
    inode: int
    size: int
    changed_ns: int


@dataclass(slots=True, kw_only=True)
class MediaFile:
    """An open file.

    Attributes:
        path: Its name, for messages alone.
        descriptor: Open for reading as long as `open_media` lasts.
        identity: Of what is open.
        container: FFmpeg's names of its format, once that was found by content: all later openings are held to it.
    """

    path: Path
    descriptor: int
    identity: Identity
    container: str | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.identity.size

    def reader(self) -> io.BufferedReader:
        """The content from its beginning; each reader has a place of its own, and no name."""
        return io.BufferedReader(_Positioned(self.descriptor), _BUFFER)

    def head(self, num_bytes: int) -> bytes:
        """The first bytes, as far as there are any."""
        with self.reader() as content:
            return content.read(num_bytes)

    def sha256(self) -> str:
        """Hash of the content."""
        with self.reader() as content:
            return hashlib.file_digest(content, "sha256").hexdigest()

    def unchanged(self) -> bool:
        """Whether nobody has written to it since it was opened."""
        return _identity(os.fstat(self.descriptor)) == self.identity


@contextmanager
def open_media(path: Path, root: Path | None = None) -> Iterator[MediaFile]:
    """Opens a medium and looks at what is open.

    Args:
        path: A file's name.
        root: The folder that the file must lie below, whatever links its name leads through; None: anywhere.

    Raises:
        MediaError: It cannot be read, is no regular file, or lies outside of `root`.
    """
    try:
        # Without O_NONBLOCK a named pipe would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{path}: cannot be read ({reason})") from error
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise MediaError(f"{path}: is no regular file; put the medium itself there")
        if root is not None and not _lies_below(descriptor, state, path, root):
            raise MediaError(f"{path}: leads out of media_root {root}; copy the file below it")
        yield MediaFile(path=path, descriptor=descriptor, identity=_identity(state))
    finally:
        os.close(descriptor)


def of_path(function: Callable[Concatenate[MediaFile, P], T]) -> Callable[Concatenate[Path, P], T]:
    """The same function of a file that is opened for the call, wherever it lies."""

    @wraps(function)
    def opening(path: Path, *args: P.args, **kwargs: P.kwargs) -> T:
        with open_media(path) as file:
            return function(file, *args, **kwargs)

    return opening


def _identity(state: os.stat_result) -> Identity:
    return Identity(state.st_dev, state.st_ino, state.st_size, state.st_ctime_ns)


def _lies_below(descriptor: int, state: os.stat_result, path: Path, root: Path) -> bool:
    if sys.platform == "linux":
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(root.resolve())
    # Elsewhere a descriptor does not tell its name: the name without links must lead to what is open.
    real = path.resolve()
    return real.is_relative_to(root.resolve()) and os.path.samestat(state, os.lstat(real))


class _Positioned(io.RawIOBase):
    """Reads a descriptor at a place of its own, and leaves it open."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer, /) -> int:  # type: ignore[no-untyped-def]
        count = os.preadv(self._descriptor, [buffer], self._at)
        self._at += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._descriptor).st_size}[whence]
        if start + offset < 0:
            raise OSError(f"seek to {start + offset}")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at
