"""Files that are whole or not there, their modes, and what becomes of a write that the disk refuses.

All that belongs to a run or a cache follows the umask, like any file that a user makes: a group that shares a folder
sets `umask 002` and reads it all. Only a file that holds a secret is 0600; no file of a run does, because addresses are
stored without their credentials.
"""

import json
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.errors import DiskError, StageError
from lightning_mmrl.machine import refusal

_log = logging.getLogger(__name__)


def read_json(path: Path, remedy: str) -> Any:
    """What a JSON file says that anyone may have written.

    Args:
        path: The file.
        remedy: What to do then, for the message.

    Raises:
        PermissionError: It belongs to somebody else.
        StageError: It cannot be read, is no JSON in UTF-8, or is nested deeper than Python reads.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        raise  # the command says whose the file is
    except OSError as error:
        raise StageError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise StageError(f"{path} is damaged ({error}); {remedy}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the path in the error if the disk refuses what the block writes there, whatever a library makes of it.

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
    """Writes a file beside its place and renames it: it is there as a whole, or as it was before.

    Args:
        path: Its place; folders that are missing are made.
        content: Text is written as UTF-8.
        shared: Several processes may write the same file at once.
        durable: Have it on the disk when the call returns.

    Raises:
        DiskError: The disk refuses; nothing half-written is left.
    """
    content = content.encode() if isinstance(content, str) else content
    mark = f".{secrets.token_hex(4)}" if shared else ""
    temporary = path.with_name(f"{path.name}{mark}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            _remove(temporary)
            raise


def write_json(path: Path, content: Mapping[str, Any], *, ascii_only: bool = True, shared: bool = False) -> None:
    """Writes indented JSON as `write_whole` writes.

    Args:
        path: Its place.
        content: What JSON can hold.
        ascii_only: Escape all other characters.
        shared: Several processes may write the same file at once.

    Raises:
        DiskError: The disk refuses; what was there stays.
    """
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=ascii_only) + "\n", shared=shared)


@contextmanager
def folder_beside(target: Path, *, made: bool = True) -> Iterator[Path]:
    """A new folder beside a target, to be renamed to it; removed if the block fails, so that its space is free again.

    What a killed process left there is removed first; its name is one that no user gives to a folder. Unless it is
    `made` here, the block makes it.
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
    """Gives every file below a folder the mode that a new file gets there; libraries make some of them 0600.

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
    """Around a write that the command can do without: if the disk refuses it, the command goes on.

    That is said once. `take_missing` says at the end how much is missing.

    Args:
        what: The kind of thing that is written, in the plural.
        folder: Where.
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
    """A sentence for each kind of thing that could not be written since the last call."""
    found = [
        f"{each.number} {what} are missing in {folder} ({each.problem})" for (what, folder), each in _missing.items()
    ]
    _missing.clear()
    return found


def _remove(temporary: Path) -> None:
    """Removes a file that is no whole one, if the disk allows it; the next write of it begins anew in any case."""
    try:
        temporary.unlink(missing_ok=True)
    except OSError as error:
        _log.debug("%s stays: %s", temporary, error)
