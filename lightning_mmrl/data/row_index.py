"""The index of a manifest: where each line lies, and columns of what later checks need; kept in a folder of a cache."""

import hashlib
import io
import json
import logging
import os
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mmrl.data.media.cache_folder import CHECKED_SUFFIX, INDEX_SUFFIX, entry_path
from lightning_mmrl.data.row_scan import FileState, Scanned, state_of
from lightning_mmrl.data.samples import NO_SOLUTION, RowCheck
from lightning_mmrl.files import dispensable, write_pieces

PACKAGES = ("data", "prompts", "types")
"""Packages of this one whose code decides what is read from a line and whether a sample passes a check."""

_IDS_AT_ONCE = 10_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowIndex:
    """What is known of a manifest without problems; `N` samples with `K` different solutions.

    Attributes:
        offsets: Where each line starts, in bytes, [N].
        sizes: Bytes of each line, [N].
        lines: Number of each line, [N].
        checksums: CRC-32 of each line, [N].
        kinds: See `Samples.kinds`, [N].
        contents: `content_digest` of each sample, as a number, [N].
        id_hashes: Hash of each id, [N].
        id_ends: Where each id ends in `ids`, [N].
        ids: All ids in UTF-8, one after the other.
        solutions: See `Solutions.codes`, [N].
        firsts: The first sample with each solution, [K].
        media: Paths of media in UTF-8, each once, with a zero byte between them.
    """

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int32]
    lines: NDArray[np.int64]
    checksums: NDArray[np.uint32]
    kinds: NDArray[np.uint8]
    contents: NDArray[np.uint32]
    id_hashes: NDArray[np.uint64]
    id_ends: NDArray[np.int64]
    ids: NDArray[np.uint8]
    solutions: NDArray[np.int32]
    firsts: NDArray[np.int64]
    media: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.offsets)

    def id_of(self, row: int) -> str:
        """The id of a sample."""
        start = int(self.id_ends[row - 1]) if row else 0
        return self.ids[start : int(self.id_ends[row])].tobytes().decode()

    def ids_of(self, rows: range) -> Iterator[str]:
        """Yields the ids of samples."""
        for some in (rows[start : start + _IDS_AT_ONCE] for start in range(0, len(rows), _IDS_AT_ONCE)):
            places = np.array(some)
            ends = self.id_ends[places]
            starts = np.where(places > 0, self.id_ends[places - 1], 0)
            first = int(starts.min())
            content = self.ids[first : int(ends.max())].tobytes()
            for start, end in zip((starts - first).tolist(), (ends - first).tolist(), strict=True):
                yield content[start:end].decode()

    def media_paths(self) -> list[str]:
        """All paths of media."""
        return self.media.tobytes().decode().split("\0") if len(self.media) else []


def joined(found: Sequence[Scanned]) -> RowIndex:
    """The index of all pieces of a manifest, in order."""
    found = found or [Scanned()]

    def column(name: str, dtype: Any) -> NDArray[Any]:
        return np.concatenate([np.frombuffer(getattr(each, name), dtype) for each in found])

    codes, firsts = numbered(column("solutions", np.uint64).reshape(-1, 2))
    paths = dict.fromkeys(path for each in found for path in each.media)
    return RowIndex(
        offsets=column("offsets", np.int64),
        sizes=column("sizes", np.int32),
        lines=column("lines", np.int64),
        checksums=column("checksums", np.uint32),
        kinds=column("kinds", np.uint8),
        contents=column("contents", np.uint32),
        id_hashes=column("id_hashes", np.uint64),
        id_ends=np.cumsum(column("id_sizes", np.int32), dtype=np.int64),
        ids=column("ids", np.uint8),
        solutions=codes,
        firsts=firsts,
        media=np.frombuffer("\0".join(paths).encode(), np.uint8),
    )


def numbered(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Numbers different hashes of 128 bits by their first places; zeros stand for none.

    Args:
        hashes: Two halves for each place, [N, 2].

    Returns:
        The number of each place, `NO_SOLUTION` for none, and the first place of each number.
    """
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal hashes stay in the order of their places
    ranked = hashes[order]
    starts = np.ones(len(order), bool)
    starts[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    group = np.cumsum(starts) - 1
    firsts = order[starts]
    real = hashes[firsts].any(axis=1)
    by_place = np.argsort(np.where(real, firsts, len(order)), kind="stable")
    number = np.empty(len(firsts), np.int32)
    number[by_place] = np.arange(len(firsts))
    number[~real] = NO_SOLUTION
    codes = np.empty(len(order), np.int32)
    codes[order] = number[group]
    return codes, firsts[by_place][: int(real.sum())]


def repeated_id(index: RowIndex) -> tuple[int, int] | None:
    """The first sample whose id an earlier one has, and that one; None if all ids differ."""
    values, counts = np.unique(index.id_hashes, return_counts=True)
    seen: dict[str, int] = {}
    for row in np.flatnonzero(np.isin(index.id_hashes, values[counts > 1])).tolist():
        first = seen.setdefault(index.id_of(row), row)
        if first != row:
            return row, first
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFacts:
    """A manifest without its samples: SHA-256 of the file, and its lines that are not blank."""

    digest: str
    num_rows: int


class IndexFolder:
    """Indexes of manifests, and what was found about them, in the folder of a media cache.

    A name holds the path and the state of the manifest, so a manifest that changed has no entry.

    Args:
        folder: The folder of the cache.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, key: str) -> RowIndex | None:
        """The index with a key; None if there is none, or a damaged one."""
        path = entry_path(self._folder, key, INDEX_SUFFIX)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                index = RowIndex(**{each.name: found[each.name] for each in fields(RowIndex)})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            _log.warning("%s cannot be used (%s); its manifest is read anew.", path, error)
            return None
        used(path)
        return index

    def save(self, key: str, index: RowIndex) -> None:
        """Writes an index; a disk that refuses it costs a warning."""
        content = io.BytesIO()
        np.savez(content, **{each.name: getattr(index, each.name) for each in fields(RowIndex)})
        self._write(entry_path(self._folder, key, INDEX_SUFFIX), content.getbuffer())

    def recall(self, key: str) -> Any:
        """What was noted under a key; None if nothing was."""
        path = entry_path(self._folder, key, CHECKED_SUFFIX)
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return None
        used(path)
        return found

    def note(self, key: str, value: Any) -> None:
        """Notes a plain value under a key; a disk that refuses it costs a warning."""
        self._write(entry_path(self._folder, key, CHECKED_SUFFIX), json.dumps(value).encode())

    def facts(self, key: str) -> ManifestFacts | None:
        """The facts that are kept of a file in one state; None if there are none."""
        found = self.recall(key)
        try:
            return None if found is None else ManifestFacts(**found)
        except TypeError:  # the note is damaged, or of another version
            return None

    def _write(self, path: Path, content: bytes | memoryview) -> None:
        with dispensable("indexes of manifests", self._folder):
            write_pieces(path, [content], shared=True, durable=False)


class Outcomes:
    """How many of the first samples of a source pass each check, in this process and, with a folder, in later ones.

    Args:
        key: Identifies the source, its content and the code that reads it.
        folder: Where outcomes of all checks are kept; None keeps none beyond this process.
        slow_folder: Where outcomes of slow checks are kept.
    """

    def __init__(self, key: str, folder: IndexFolder | None, slow_folder: IndexFolder | None) -> None:
        self._key = key
        self._folders = {False: folder, True: slow_folder}
        self._passing: dict[str, int] = {}
        self._failing: dict[str, str] = {}

    def num_passing(self, check: RowCheck) -> int:
        """How many of the first samples are known to pass a check."""
        if check.key not in self._passing:
            folder = self._folders[check.slow]
            noted = None if folder is None else folder.recall(key_of(self._key, check.key))
            self._passing[check.key] = noted if isinstance(noted, int) else 0
        return self._passing[check.key]

    def failure(self, check: RowCheck) -> str | None:
        """Why the first of the other samples fails a check; None if that is not known."""
        return self._failing.get(check.key)

    def first_failure(self, check: RowCheck, num_samples: int) -> tuple[int, str] | None:
        """The place of the first sample that fails a check, and why; None if the first `num_samples` pass."""
        passing, reason = self.num_passing(check), self.failure(check)
        return (passing, reason) if passing < num_samples and reason is not None else None

    def note(self, check: RowCheck, num_passing: int, failure: str | None) -> None:
        """Notes how many of the first samples pass a check and, in this process alone, why the next one does not."""
        self._passing[check.key] = num_passing
        if failure is not None:
            self._failing[check.key] = failure
        if (folder := self._folders[check.slow]) is not None:
            folder.note(key_of(self._key, check.key), num_passing)


def recalled_facts(folder: Path | None, path: Path) -> ManifestFacts | None:
    """What is kept of a manifest; None if nothing is, or if it has changed."""
    if folder is None or not path.is_file():
        return None
    return IndexFolder(folder).facts(file_key(path, state_of(path)))


def file_key(path: Path, state: FileState) -> str:
    """The key of a file in one state."""
    return key_of("file", str(path.resolve()), state)


def used(path: Path) -> None:
    """Renews the time of the last use of a file of the cache."""
    with suppress(OSError):  # in a read-only folder nothing is ever evicted
        os.utime(path)


def key_of(*parts: Any) -> str:
    """The key of plain values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@cache
def code_digest(*packages: str) -> str:
    """A hash of the code of packages, `PACKAGES` if none is given: what another version found is not used."""
    root = Path(__file__).parents[1]
    files: Iterable[Path] = (file for name in packages or PACKAGES for file in sorted((root / name).rglob("*.py")))
    found: Mapping[str, str] = {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
    return key_of(sys.version, found)
