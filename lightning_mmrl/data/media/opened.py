"""Opens a media file once, so that decoders, header readers and hashes read the very file that was checked.

Another file can take the same name between a check and a later opening. Therefore the checks look at the open
descriptor, and all later reads go through that descriptor.
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
    """Identifies a file and the state of its content.

    Attributes:
        device: Number of the device that holds the file.
        inode: Number of the file on that device.
        size: Size of the file in bytes.
        changed_ns: Time of the last change (ctime); unlike the modification time, it cannot be set back.
    """

    device: int
    inode: int
    size: int
    changed_ns: int


@dataclass(slots=True, kw_only=True)
class MediaFile:
    """An open file.

    Attributes:
        path: Name of the file, used only in messages.
        descriptor: File descriptor that is open for reading until `open_media` ends.
        identity: Identity of the open file.
        container: FFmpeg's names of the file's format, once it is detected; later openings must use the same format.
    """

    path: Path
    descriptor: int
    identity: Identity
    container: str | None = None

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self.identity.size

    def reader(self) -> io.BufferedReader:
        """A nameless stream of the content from its start; each reader has its own position."""
        return io.BufferedReader(_Positioned(self.descriptor), _BUFFER)

    def head(self, num_bytes: int) -> bytes:
        """The first bytes, fewer if the file is shorter."""
        with self.reader() as content:
            return content.read(num_bytes)

    def sha256(self) -> str:
        """SHA-256 of the content, in hexadecimal digits."""
        with self.reader() as content:
            return hashlib.file_digest(content, "sha256").hexdigest()

    def unchanged(self) -> bool:
        """Whether the file is still as it was when it was opened."""
        return _identity(os.fstat(self.descriptor)) == self.identity


@contextmanager
def open_media(path: Path, root: Path | None = None) -> Iterator[MediaFile]:
    """Opens a media file and checks what was opened.

    Args:
        path: Name of the file.
        root: The folder that must contain the file after all links are resolved; None for any folder.

    Raises:
        MediaError: The file cannot be read, is no regular file, or lies outside `root`.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{path}: cannot be read ({reason})") from error
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise MediaError(f"{path}: is no regular file; put the medium itself there")
        if root is not None:
            if sys.platform == "linux":
                below = Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(root.resolve())
            else:  # the name of a descriptor is unknown, so the resolved path must name the file that is open
                real = path.resolve()
                below = real.is_relative_to(root.resolve()) and os.path.samestat(state, os.lstat(real))
            if not below:
                raise MediaError(f"{path}: leads out of media_root {root}; copy the file below it")
        yield MediaFile(path=path, descriptor=descriptor, identity=_identity(state))
    finally:
        os.close(descriptor)


def of_path(function: Callable[Concatenate[MediaFile, P], T]) -> Callable[Concatenate[Path, P], T]:
    """Turns a function of an open `MediaFile` into one of a path, which is opened for the call."""

    @wraps(function)
    def opening(path: Path, *args: P.args, **kwargs: P.kwargs) -> T:
        with open_media(path) as file:
            return function(file, *args, **kwargs)

    return opening


def _identity(state: os.stat_result) -> Identity:
    return Identity(state.st_dev, state.st_ino, state.st_size, state.st_ctime_ns)


class _Positioned(io.RawIOBase):
    """Reads a descriptor from its own position, and does not close it."""

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
