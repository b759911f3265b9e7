"""Atomic writes, file modes, and errors of a disk that refuses a write.

Files of a run or a cache follow the umask, like any file that a user makes: a group that shares a folder sets
`umask 002` and can read them all. Only a file with a secret needs mode 0600. No file of a run holds a secret, because
addresses are stored without their credentials.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.errors import DiskError, StageError
from lightning_mmrl.machine import refusal

_log = logging.getLogger(__name__)


def read_json(path: Path, remedy: str) -> Any:
    """Reads a JSON file, which anyone may have written.

    Args:
        path: The file.
        remedy: The way for the user to fix the problem, for the error message.

    Raises:
        PermissionError: The file belongs to somebody else.
        StageError: The file cannot be read, is not JSON in UTF-8, or is nested too deeply for Python.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        raise  # the command line names the owner
    except OSError as error:
        raise StageError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise StageError(f"{path} is damaged ({error}); {remedy}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns any error of the block that means "the disk refuses" into one that names the path.

    Raises:
        DiskError: The disk refuses.
    """
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        found = refusal(error)
        if found is None or found.memory:
            raise
        problem = found.problem if str(path) in found.problem else f"{path}: {found.problem}"
        raise DiskError(problem, found.remedy) from error


def write_whole(path: Path, content: str | bytes, *, shared: bool = False, durable: bool = True) -> None:
    """Writes a file atomically, see `write_pieces`.

    Args:
        path: Path of the file; missing folders are created.
        content: Bytes, or text, which is written as UTF-8.
        shared: Several processes may write the same file at once.
        durable: True to flush the file to the disk before the call returns.

    Raises:
        DiskError: The disk refuses; the file is as it was before.
    """
    write_pieces(path, [content.encode() if isinstance(content, str) else content], shared=shared, durable=durable)


def write_pieces(
    path: Path, pieces: Iterable[bytes | memoryview], *, shared: bool = False, durable: bool = True
) -> None:
    """Writes a file atomically and piece by piece: into a temporary file, which is then renamed to the path.

    Args:
        path: Path of the file; missing folders are created.
        pieces: The content; if making a piece fails, the file is as it was before.
        shared: Several processes may write the same file at once.
        durable: True to flush the file to the disk before the call returns.

    Raises:
        DiskError: The disk refuses; the file is as it was before.
    """
    mark = f".{secrets.token_hex(4)}" if shared else ""
    temporary = path.with_name(f"{path.name}{mark}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.writelines(pieces)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            try:
                temporary.unlink(missing_ok=True)
            except OSError as error:  # the next write replaces it in any case
                _log.debug("%s stays: %s", temporary, error)
            raise


def write_json(path: Path, content: Mapping[str, Any], *, ascii_only: bool = True, shared: bool = False) -> None:
    """Writes indented JSON atomically, as `write_whole` does.

    Args:
        path: Path of the file.
        content: Values that JSON can hold.
        ascii_only: True to escape all other characters.
        shared: Several processes may write the same file at once.

    Raises:
        DiskError: The disk refuses; the file is as it was before.
    """
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=ascii_only) + "\n", shared=shared)


@contextmanager
def folder_beside(target: Path, *, made: bool = True) -> Iterator[Path]:
    """Gives the block a temporary folder next to a target, which the block fills and then renames to the target.

    If the block fails, the folder is removed. A folder that a killed process left is removed first; its name is one
    that no user would choose. If `made` is false, the block creates the folder itself.
    """
    temporary = target.with_name(f".{target.name}.mmrl-partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        if made:
            temporary.mkdir(parents=True)
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def follow_umask(folder: Path) -> None:
    """Gives every file in a folder tree the mode that a new file gets there; some libraries create files with 0600.

    Raises:
        OSError: The disk refuses.
    """
    probe = folder / f".{secrets.token_hex(4)}.tmp"
    with probe.open("xb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


@dataclass(kw_only=True)
class _Missing:
    number: int
    problem: str


_missing: dict[tuple[str, str], _Missing] = {}


@contextmanager
def dispensable(what: str, folder: Path) -> Iterator[None]:
    """Wraps an optional write: if the disk refuses it, the command continues after one warning.

    At the end of the command `take_missing` reports how much is missing.

    Args:
        what: The kind of output that is written, in the plural.
        folder: The folder it is written to.
    """
    try:
        yield
    except Exception as error:
        found = refusal(error)
        if found is None or found.memory:
            raise
        key = what, str(folder)
        if key not in _missing:
            _missing[key] = _Missing(number=0, problem=found.problem)
            _log.warning("%s cannot be written to %s (%s); the run goes on without them", what, folder, found.problem)
        _missing[key].number += 1


def take_missing() -> list[str]:
    """Returns a sentence for each kind of output that could not be written since the last call."""
    found = [
        f"{each.number} {what} are missing in {folder} ({each.problem})" for (what, folder), each in _missing.items()
    ]
    _missing.clear()
    return found


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk.

    Raises:
        OSError: The disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flushes a folder and all files in it to the disk.

    Raises:
        OSError: The disk refuses.
    """
    for path in [*sorted(folder.rglob("*")), folder]:
        sync(path)
