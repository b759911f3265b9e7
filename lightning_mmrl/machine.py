"""What a machine refuses a program, in words: room on a disk, permission to write, open files, memory.

Libraries hide what the disk or the allocator said in errors of their own, often in their text alone. This is the one
place that recognizes them.
"""

import errno
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning_mmrl.errors import DiskError, MachineError, MmrlError, OutOfMemoryError
from lightning_mmrl.permissions import denied


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What was refused.

    Attributes:
        problem: As a clause, with the file if it is known.
        remedy: What the user can do, in the imperative.
        memory: Whether it is memory that is missing; else it is something of a disk.
    """

    problem: str
    remedy: str
    memory: bool = False

    def error(self) -> MachineError:
        """The error to raise for it."""
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
    # torch.save keeps to itself why a file could not be written.
    "PytorchStreamWriter": ("a file could not be written", "look whether the disk is full or read-only"),
    "unexpected pos": ("a file could not be written", "look whether the disk is full or read-only"),
    "iostream error": ("a file could not be written", "look whether the disk is full or read-only"),
}
"""Texts of errors that have no number."""

_SAY_SO = frozenset(
    {
        ("builtins", "Exception"),  # tokenizers
        ("builtins", "RuntimeError"),  # torch.save
        ("builtins", "OSError"),  # of a loader's worker, which keeps its text alone
        ("builtins", "PermissionError"),
        ("builtins", "FileNotFoundError"),  # tempfile
        ("torch", "CheckpointException"),
        ("safetensors", "SafetensorError"),
        ("sqlite3", "OperationalError"),
        ("sqlalchemy", "OperationalError"),
    }
)
"""Package and name of each class whose text is believed; the same words in any other are a mistake of a program."""

_NO_MEMORY = ("allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def refusal(error: BaseException) -> Refusal | None:
    """What the machine refused, if that is what an error or its cause is about.

    >>> refusal(OSError(errno.ENOSPC, "No space left on device", "runs/a")).problem
    'runs/a: no space is left on the disk'
    >>> refusal(ValueError("no")) is None
    True
    """
    if isinstance(error, DiskError):
        return Refusal(problem=error.problem, remedy=error.remedy)
    if isinstance(error, MmrlError):
        return None
    chain = list(_causes(error))
    for read in (_out_of_memory, _numbered, _said):
        found = next((each for cause in chain if (each := read(cause)) is not None), None)
        if found is not None:
            return found
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and what torch's writers were handling when their end failed as well."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or (found.__context__ if isinstance(found, RuntimeError) else None)


def _out_of_memory(error: BaseException) -> Refusal | None:
    text = str(error).partition("\n")[0]
    on_host = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if on_host:
        said = f" ({text})" if text else ""
        return Refusal(problem=f"no memory is left on this machine{said}", remedy=_LESS_MEMORY, memory=True)
    torch = sys.modules.get("torch")  # whoever raises its error has loaded it
    is_torch = torch is not None and isinstance(error, torch.OutOfMemoryError)
    if not is_torch and not (isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)):
        return None
    where = "this machine" if "allocate memory" in text else "the device"
    text = _without_source(text)
    return Refusal(problem=f"no memory is left on {where} ({text})", remedy=_LESS_MEMORY, memory=True)


_LESS_MEMORY = "leave more memory to this process, or have it use less"


def _without_source(text: str) -> str:
    """A message of torch without the place in its source and without advice.

    >>> _without_source("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: no.")
    "DefaultCPUAllocator: can't allocate memory: no"
    """
    _, found, rest = text.partition("DefaultCPUAllocator")
    text = found + rest if found else text
    head = text.split(". ")[:2]
    return ". ".join(head).rstrip(".")


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
    if (kind.__module__.partition(".")[0], kind.__name__) not in _SAY_SO:
        return None
    # A path may hold any words.
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    for words, (problem, remedy) in _SAID.items():
        said = next((line.strip() for line in text.splitlines() if words in line), None)
        if said is not None:
            return Refusal(problem=f"{problem} ({said})", remedy=remedy)
    return None
