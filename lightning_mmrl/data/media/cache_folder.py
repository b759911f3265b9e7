"""The files of a media cache: which of them are its own, how large they are, when they were used, which leave first."""

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lightning_mmrl.errors import DataError
from lightning_mmrl.machine import refusal

SUFFIX = ".media"
INDEX_SUFFIX = ".rows"
"""Of the index of a manifest."""
CHECKED_SUFFIX = ".checked"
"""Of a note on what was found about a manifest."""
HASHES = "content_hashes.txt"
"""Name of the index of content hashes in the folder of a cache."""
ABANDONED_S = 3600.0
"""A temporary file older than this, in seconds, has a dead writer."""

_EARLIER_SUFFIX = ".safetensors"
_OF_MANIFESTS = (INDEX_SUFFIX, CHECKED_SUFFIX)
_FOLDER = re.compile(r"[0-9a-f]{2}")
_NAME = re.compile(r"([0-9a-f]{64}\.(?:media|rows|checked|safetensors))(\.[0-9a-f]{8}\.tmp)?")
"""Names of entries, of entries of earlier versions, and of their temporary files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file of a cache: its size, and when it was last used, in seconds since the epoch.

    `is_entry` is False for a temporary file. `is_earlier` is True for a file of an earlier version, which no run reads.
    """

    path: Path
    num_bytes: int
    used_s: float
    is_entry: bool
    is_earlier: bool

    @property
    def is_medium(self) -> bool:
        """Whether it is an encoded medium, and not what is known of a manifest."""
        return self.is_entry and self.path.suffix not in _OF_MANIFESTS


def entry_path(directory: Path, key: str, suffix: str = SUFFIX) -> Path:
    """The path of the entry with a key."""
    return directory / key[:2] / f"{key}{suffix}"


def stored_files(directory: Path) -> list[StoredFile]:
    """All files that a cache wrote below a folder, without its index; files with other names are never looked at.

    Files that other processes remove at the same time may be missing.
    """
    found = []
    for folder in _entries_of(directory):
        if not _FOLDER.fullmatch(folder.name) or not folder.is_dir(follow_symlinks=False):
            continue
        for file in _entries_of(Path(folder.path)):
            name = _NAME.fullmatch(file.name)
            if name is None or not file.name.startswith(folder.name) or not file.is_file(follow_symlinks=False):
                continue
            try:
                state = file.stat(follow_symlinks=False)
            except FileNotFoundError:  # another process removed it
                continue
            one = StoredFile(
                path=Path(file.path),
                num_bytes=state.st_size,
                used_s=state.st_mtime,
                is_entry=name[2] is None,
                is_earlier=name[1].endswith(_EARLIER_SUFFIX),
            )
            found.append(one)
    return found


def removable(
    files: Iterable[StoredFile], *, limit_bytes: float | None = None, used_before_s: float, all_older: bool = False
) -> list[StoredFile]:
    """The files that have to leave: abandoned temporary ones, and the least recently used entries.

    Args:
        files: The files of a cache.
        limit_bytes: Entries leave until all files together have at most this size; None for no limit.
        used_before_s: Only entries that were last used before this time leave.
        all_older: True if all entries that were last used before this time leave, whatever the size.
    """
    files = sorted(files, key=lambda file: file.used_s)
    total, found = sum(file.num_bytes for file in files), []
    abandoned_s = time.time() - ABANDONED_S
    for file in files:
        leaves = file.used_s < abandoned_s
        if file.is_entry:
            over = limit_bytes is not None and total > limit_bytes
            leaves = file.used_s < used_before_s and (over or all_older)
        if leaves:
            found.append(file)
            total -= file.num_bytes
    return found


def remove(files: Iterable[StoredFile]) -> None:
    """Deletes files; one that is gone already is no error, and one that another user keeps stays."""
    for file in files:
        with suppress(PermissionError):
            file.path.unlink(missing_ok=True)


def cached_files(directory: Path) -> list[StoredFile]:
    """As `stored_files`, of a folder that a user named.

    Raises:
        DataError: It is no folder of a cache.
    """
    if not directory.is_dir():
        problem = "is no folder" if directory.exists() else "does not exist"
        raise DataError(f"{directory} {problem}; name the folder of data.media.cache_dir")
    found = stored_files(directory)
    if not found and not (directory / HASHES).is_file():
        raise DataError(
            f"{directory} is no media cache: no file in it is named like an entry; name the folder of "
            "data.media.cache_dir"
        )
    return found


def _entries_of(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if refusal(error) is None:
            raise
        raise DataError(f"{folder} cannot be listed ({error.strerror}); give this user the right to read it") from error
