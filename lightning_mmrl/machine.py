"""Recognizes errors of the machine and explains them: disk space, permission to write, open files, memory.

Libraries wrap the errors of a disk or an allocator in errors of their own, which often keep only the text. This module
is the one place that recognizes them.
"""

import errno
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightning_mmrl.errors import DiskError, MachineError, MmrlError, OutOfMemoryError
from lightning_mmrl.permissions import denied


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A resource that the machine refused.

    Attributes:
        problem: A clause, with the file if it is known.
        remedy: The way for the user to fix the problem, in the imperative.
        memory: True if memory ran out, False if a disk refused.
    """

    problem: str
    remedy: str
    memory: bool = False

    def error(self) -> MachineError:
        """The error to raise for this refusal."""
        return (
            OutOfMemoryError(f"{self.problem}; {self.remedy}") if self.memory else DiskError(self.problem, self.remedy)
        )


_DISK = {
    errno.ENOSPC: ("no space is left on the disk", "free some space there"),
    errno.EDQUOT: ("the quota on the disk is used up", "free some space there, or raise the quota"),
    errno.EROFS: ("the disk is read-only", "make it writable"),
    errno.EACCES: ("permission is denied", "give this user the right, or choose another folder"),
    errno.EPERM: ("the operation is not permitted", "give this user the right, or choose another folder"),
    errno.EIO: ("the disk fails to read or write", "look at the health of the disk"),
    errno.EFBIG: ("the file would be larger than its limit", "raise the limit of the file system or ulimit -f"),
    errno.EMFILE: ("too many files are open in this process", "raise ulimit -n"),
    errno.ENFILE: ("too many files are open on this machine", "close some, or raise fs.file-max"),
    errno.ESTALE: ("the network file system lost the file", "mount it again"),
    errno.ENOTCONN: ("the file system is not connected", "mount it again"),
}
_SAID = {
    **{os.strerror(code): words for code, words in _DISK.items()},
    "database or disk is full": _DISK[errno.ENOSPC],
    "disk I/O error": _DISK[errno.EIO],
    "attempt to write a readonly database": _DISK[errno.EROFS],
    "No usable temporary directory": (
        "no folder for temporary files can be written",
        "set TMPDIR to a folder with free space",
    ),
    # torch.save hides why a file could not be written.
    "PytorchStreamWriter": ("a file could not be written", "look whether the disk is full or read-only"),
    "unexpected pos": ("a file could not be written", "look whether the disk is full or read-only"),
    "iostream error": ("a file could not be written", "look whether the disk is full or read-only"),
}
"""Parts of the texts of errors that carry no error number, each with the problem and the remedy."""

_TRUSTED = frozenset(
    {
        ("builtins", "Exception"),  # tokenizers
        ("builtins", "RuntimeError"),  # torch.save
        ("builtins", "OSError"),  # from a loader's worker, which passes on only the text
        ("builtins", "PermissionError"),
        ("builtins", "FileNotFoundError"),  # tempfile
        ("torch", "CheckpointException"),
        ("safetensors", "SafetensorError"),
        ("sqlite3", "OperationalError"),
        ("sqlalchemy", "OperationalError"),
    }
)
"""Package and name of the error classes whose text is trusted; in any other class the same words mean a bug."""

_NO_MEMORY = ("allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def refusal(error: BaseException) -> Refusal | None:
    """Returns the refusal that an error or one of its causes reports; None if neither reports one.

    >>> refusal(OSError(errno.ENOSPC, "No space left on device", "runs/a")).problem
    'runs/a: no space is left on the disk'
    >>> refusal(ValueError("no")) is None
    True
    """
    if isinstance(error, DiskError):
        return Refusal(problem=error.problem, remedy=error.remedy)
    if isinstance(error, MmrlError):
        return None
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        # torch's writers raise a RuntimeError while they handle the disk's error.
        cause = cause.__cause__ or (cause.__context__ if isinstance(cause, RuntimeError) else None)
    for read in (_out_of_memory, _numbered, _said):
        found = next((each for link in chain if (each := read(link)) is not None), None)
        if found is not None:
            return found
    return None


def _out_of_memory(error: BaseException) -> Refusal | None:
    text = str(error).partition("\n")[0]
    on_host = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if on_host:
        said = f" ({text})" if text else ""
        return Refusal(problem=f"no memory is left on this machine{said}", remedy=_LESS_MEMORY, memory=True)
    torch = sys.modules.get("torch")  # loaded if one of its errors was raised
    is_torch = torch is not None and isinstance(error, torch.OutOfMemoryError)
    if not is_torch and not (isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)):
        return None
    where = "this machine" if "allocate memory" in text else "the device"
    _, allocator, rest = text.partition("DefaultCPUAllocator")  # leaves out the place in torch's source
    said = ". ".join((allocator + rest if allocator else text).split(". ")[:2]).rstrip(".")  # the rest is advice
    return Refusal(problem=f"no memory is left on {where} ({said})", remedy=_LESS_MEMORY, memory=True)


_LESS_MEMORY = "leave more memory to this process, or have it use less"


def _numbered(error: BaseException) -> Refusal | None:
    if not isinstance(error, OSError) or error.errno not in _DISK:
        return None
    problem, remedy = _DISK[error.errno]
    place = ""
    if isinstance(error.filename, str | bytes | os.PathLike):
        path = os.fsdecode(error.filename)
        whose = denied(Path(path)) if error.errno == errno.EACCES else None
        if whose is not None:
            return Refusal(problem=whose[0], remedy=whose[1])
        place = f"{path}: "
    return Refusal(problem=place + problem, remedy=remedy)


def _said(error: BaseException) -> Refusal | None:
    kind = type(error)
    if (kind.__module__.partition(".")[0], kind.__name__) not in _TRUSTED:
        return None
    # The path is not searched, since it may contain any words.
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    for words, (problem, remedy) in _SAID.items():
        said = next((line.strip() for line in text.splitlines() if words in line), None)
        if said is not None:
            return Refusal(problem=f"{problem} ({said})", remedy=remedy)
    return None


@dataclass(frozen=True, slots=True)
class _ThreadHook:
    """Handles an error that ends a thread: prints one line if the machine refused, else calls the `former` hook."""

    former: Callable[[threading.ExceptHookArgs], object]

    def __call__(self, raised: threading.ExceptHookArgs) -> None:
        found = None if raised.exc_value is None else refusal(raised.exc_value)
        if found is None:
            self.former(raised)
        else:
            sys.stderr.write(f"{found.problem}; {found.remedy}\n")


def explain_in_threads() -> None:
    """Shows one line and no traceback when the machine refuses something in a thread of a library.

    TensorBoard's writer passes its error on to the thread that logs, and also raises it in its own thread.
    """
    if not isinstance(threading.excepthook, _ThreadHook):
        threading.excepthook = _ThreadHook(threading.excepthook)
