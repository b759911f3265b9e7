"""A manifest whose samples are read when they are asked for; what is known of all of them is kept beside media."""

import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mmrl.data.formats.lines import LineError
from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.media_files import MediaFolder
from lightning_mmrl.data.row_index import (
    IndexFolder,
    Outcomes,
    RowIndex,
    code_digest,
    file_key,
    joined,
    key_of,
    repeated_id,
)
from lightning_mmrl.data.row_scan import (
    FileState,
    ParseLine,
    Piece,
    Scan,
    Scanned,
    changed_error,
    default_id,
    id_hash,
    pieces_of,
    reading,
    scanned,
    state_of,
)
from lightning_mmrl.data.samples import ListedSamples, RowCheck, Samples, Solutions
from lightning_mmrl.errors import DataError
from lightning_mmrl.types.records import Sample

KEPT_BYTES = 2**20
"""The index of a smaller manifest is made anew at each start, which takes a tenth of a second."""
MOST_HELD = 20_000
"""The samples of a manifest with at most so many stay in memory once they were read."""
RACY_S = 2.0
"""A file that changed within so many seconds before it was read could change again without a new time of change."""
_ROWS_AT_ONCE = 25_000
_SLOW_ROWS_AT_ONCE = 500


def _unseen(description: str, done: int, total: int) -> None:
    """Shows no progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexing:
    """How manifests are indexed.

    Attributes:
        folder: Folder of a media cache, where the indexes of large manifests are kept; None keeps none.
        workers: Processes that read a large manifest the first time; 0 reads it in this one.
        on_progress: Called with what is being done, the lines that are done, and all of them.
    """

    folder: Path | None = None
    workers: int = 0
    on_progress: Callable[[str, int, int], object] = _unseen


NOT_KEPT = Indexing()


class OpenManifest:
    """An open manifest without problems: its index, and its samples when they are asked for.

    A line is compared with its checksum whenever it is read, so a file that changes meanwhile gives an error and never
    another sample. A manifest that is replaced by another file stays as it was, because it is open.

    Args:
        path: The manifest.
        media_root: Folder of the media paths.
        parse: Makes samples of lines.
        indexing: How it is indexed.
        checks: Checks that will be asked for; they are made while the lines are read anyway.

    Attributes:
        path: The manifest.
        state: Its state when it was opened.
        digest: SHA-256 of the file, in hexadecimal digits.
        index: What is known of its lines.
        settled: Whether a file of the same state surely has the same content.

    Raises:
        DataError: The file cannot be read, or changed meanwhile. Or a line is malformed, an id repeats, or a medium is
            missing or outside `media_root`.
    """

    def __init__(
        self,
        path: Path,
        media_root: Path,
        parse: ParseLine,
        indexing: Indexing = NOT_KEPT,
        checks: Sequence[RowCheck] = (),
    ) -> None:
        self.path = path
        self._root = media_root
        self._parse = parse
        self._indexing = indexing
        self._held: dict[int, Sample] = {}
        with reading(path):
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.state = state_of(self._descriptor)
        is_kept = indexing.folder is not None and self.state.size >= KEPT_BYTES
        self._folder = IndexFolder(indexing.folder) if indexing.folder is not None and is_kept else None
        self._key = key_of("rows", file_key(path, self.state), path.stem, str(media_root.resolve()), code_digest())
        self.settled = self._settle(wait_s=RACY_S if is_kept else 0.0)
        known = IndexFolder(indexing.folder) if indexing.folder is not None and self.settled else None
        self._outcomes = Outcomes(self._key, self._folder and known, known)
        self.digest, self.index = self._kept() or self._read(_distinct(check for check in checks if not check.slow))
        self.ensure(checks)

    def __del__(self) -> None:
        if (descriptor := self.__dict__.pop("_descriptor", None)) is not None:
            os.close(descriptor)

    def __reduce__(self) -> Any:
        return _opened_again, (self.state, self.path, self._root, self._parse, self._indexing)

    def sample(self, row: int) -> Sample:
        """Reads a sample.

        Raises:
            DataError: The file cannot be read, or has changed.
        """
        if (held := self._held.get(row)) is not None:
            return held
        with reading(self.path):
            encoded = os.pread(self._descriptor, int(self.index.sizes[row]), int(self.index.offsets[row]))
        if zlib.crc32(encoded) != int(self.index.checksums[row]):
            raise changed_error(self.path)
        sample = self._parse(encoded, default_id(self.path, int(self.index.lines[row])))
        assert sample is not None, "a blank line has no row"
        if len(self.index) <= MOST_HELD:
            self._held[row] = sample
        return sample

    def first_failure(self, check: RowCheck, num_rows: int) -> tuple[int, str] | None:
        """The first of the first samples that fails a check, and why; None if all of them pass."""
        self.ensure([check], num_rows)
        return self._outcomes.first_failure(check, num_rows)

    def ensure(self, checks: Sequence[RowCheck], num_rows: int | None = None) -> None:
        """Makes checks of the first samples, all by default, unless their outcome is known; the lines are read once."""
        num_rows = len(self.index) if num_rows is None else num_rows
        starts: dict[int, list[RowCheck]] = {}
        for check in _distinct(checks):
            if (done := self._outcomes.num_passing(check)) < num_rows and self._outcomes.failure(check) is None:
                if check.slow:
                    self._make_slowly(check, done, num_rows)
                else:
                    starts.setdefault(done, []).append(check)
        for start, missing in starts.items():
            bounds = [*range(start, num_rows, _ROWS_AT_ONCE), num_rows]
            self._make(missing, bounds)

    def _make_slowly(self, check: RowCheck, start: int, num_rows: int) -> None:
        """Makes a slow check in this process, up to the first failure; what is done is kept as it goes."""
        for first in range(start, num_rows, _SLOW_ROWS_AT_ONCE):
            end = min(first + _SLOW_ROWS_AT_ONCE, num_rows)
            self._make([check], [first, end])
            self._indexing.on_progress(f"checking solutions of {self.path.name}", end, num_rows)
            if self._outcomes.failure(check) is not None:
                return

    def _make(self, checks: Sequence[RowCheck], bounds: Sequence[int]) -> None:
        """Makes checks of the samples between the first and the last bound, in a piece for each pair of bounds."""
        pieces = [self._piece(first, end) for first, end in pairwise(bounds)]
        found, problem = self._scanned(pieces, checks, int(self.index.lines[bounds[-1] - 1]), fills=False)
        if problem is not None:
            raise problem
        self._note(checks, found, bounds[0])

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        """Maps each of the given ids that occurs to its sample."""
        if not (names := list(ids)):
            return {}
        order, hashes = self._by_hash
        wanted = np.array([id_hash(name.encode()) for name in names], np.uint64)
        ends = np.searchsorted(hashes, wanted, side="right").tolist()
        found = {}
        for name, start, end in zip(names, np.searchsorted(hashes, wanted).tolist(), ends, strict=True):
            for row in order[start:end].tolist():
                if self.index.id_of(row) == name:
                    found[name] = row
        return found

    @cached_property
    def _by_hash(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        order = np.argsort(self.index.id_hashes, kind="stable")
        return order, self.index.id_hashes[order]

    def _settle(self, wait_s: float) -> bool:
        """Waits until the state of the file tells its content from any later one; returns whether it does now."""
        changed_s = self.state.changed_ns / 1e9  # the time of modification can be set to any time
        time.sleep(min(wait_s, max(0.0, changed_s + RACY_S - time.time())))
        return time.time() - changed_s >= RACY_S

    def _kept(self) -> tuple[str, RowIndex] | None:
        """The digest and the index, if they are kept and all media are still there."""
        if self._folder is None or not self.settled:
            return None
        facts, index = self._folder.facts(file_key(self.path, self.state)), self._folder.load(self._key)
        if facts is None or index is None:
            return None
        media = MediaFolder(self._root)
        try:
            for path in index.media_paths():
                media.check(path)
        except LineError:  # the lines are read again, to name the first one of it
            return None
        return facts.digest, index

    def _read(self, checks: Sequence[RowCheck]) -> tuple[str, RowIndex]:
        """Reads every line, and keeps what was found if the file is large."""
        with reading(self.path):
            digest, pieces, num_lines = pieces_of(self._descriptor)
        found, problem = self._scanned(pieces, checks, num_lines, fills=True)
        index = joined(found)
        if (repeated := repeated_id(index)) is not None:
            row, first = repeated
            reason = f"id {quoted(index.id_of(row))} was used on line {index.lines[first]}; make ids unique"
            raise DataError(f"{self.path}:{index.lines[row]}: {reason}")
        if problem is not None:
            raise problem
        with reading(self.path):
            if state_of(self._descriptor) != self.state:
                raise changed_error(self.path)
        if self._folder is not None and self.settled and len(index):
            self._folder.save(self._key, index)
            facts = {"digest": digest, "num_rows": sum(each.num_rows for each in found)}
            self._folder.note(file_key(self.path, self.state), facts)
        self._note(checks, found, 0)
        return digest, index

    def _scanned(
        self, pieces: Sequence[Piece], checks: Sequence[RowCheck], num_lines: int, *, fills: bool
    ) -> tuple[list[Scanned], DataError | None]:
        """What is in each piece, up to the first unusable line, and the error that names that line."""
        scan = Scan(
            path=self.path,
            state=self.state,
            media_root=self._root,
            parse=self._parse,
            checks=tuple(checks),
            fills=fills,
        )

        def show(done: int) -> None:
            if len(pieces) > 1:
                line = num_lines if done == len(pieces) else pieces[done].first_line - 1
                self._indexing.on_progress(f"checking {self.path.name}", line, num_lines)

        found: list[Scanned] = []
        for each in scanned(scan, pieces, workers=self._indexing.workers, on_done=show):
            found.append(each)
            if (bad := each.problem) is not None:
                return found, DataError(f"{self.path}:{bad.line}: {bad.reason}")
        return found, None

    def _note(self, checks: Sequence[RowCheck], found: Sequence[Scanned], start: int) -> None:
        """Notes how many of the first samples pass checks, which the samples before `start` do."""
        for number, check in enumerate(checks):
            row, reason = start, None
            for piece in found:
                if (failure := piece.failures[number]) is not None:
                    row, reason = row + failure[0], failure[1]
                    break
                row += piece.num_samples
            self._outcomes.note(check, row, reason)

    def _piece(self, first: int, end: int) -> Piece:
        """The lines of some samples."""
        offsets, sizes, lines = self.index.offsets, self.index.sizes, self.index.lines
        return Piece(
            start=int(offsets[first]), end=int(offsets[end - 1]) + int(sizes[end - 1]), first_line=int(lines[first])
        )


def _distinct(checks: Iterable[RowCheck]) -> list[RowCheck]:
    return list({check.key: check for check in checks}.values())


def _opened_again(state: FileState, *args: Any) -> OpenManifest:
    """Opens a manifest in another process.

    Raises:
        DataError: It has changed.
    """
    found = OpenManifest(*args)
    if found.state != state:
        raise changed_error(found.path)
    return found


class ManifestSamples(Samples):
    """Samples of an open manifest, each read when it is asked for.

    Args:
        manifest: The manifest.
        rows: The samples; None for all.
    """

    def __init__(self, manifest: OpenManifest, rows: range | None = None) -> None:
        self.manifest = manifest
        self._rows = range(len(manifest.index)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return ManifestSamples(self.manifest, self._rows[place])
        return self.manifest.sample(self._rows[place])

    def kinds(self) -> NDArray[np.uint8]:
        return self.manifest.index.kinds[self._places]

    def ids(self) -> Iterator[str]:
        return self.manifest.index.ids_of(self._rows)

    def solutions(self) -> Solutions:
        index = self.manifest.index
        codes = index.solutions[self._places]
        found, places = np.unique(codes[codes >= 0], return_index=True)
        in_order = found[np.argsort(places)].tolist()
        texts = {code: self.manifest.sample(int(index.firsts[code])).solution for code in in_order}
        return Solutions(codes=codes, texts={code: text for code, text in texts.items() if text is not None})

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        found = {name: self._rows.index(row) for name, row in self.manifest.rows_of(ids).items() if row in self._rows}
        return dict(sorted(found.items(), key=lambda each: each[1]))

    def content(self, row: int) -> str:
        return f"{int(self.manifest.index.contents[self._rows[row]]):08x}"

    def first_failure(self, check: RowCheck) -> tuple[int, str] | None:
        if self._rows == range(len(self._rows)):
            return self.manifest.first_failure(check, len(self._rows))
        return ListedSamples(self).first_failure(check)

    @property
    def _places(self) -> slice | NDArray[np.int64]:
        """The rows, for NumPy: a slice where that makes no copy."""
        rows = self._rows
        return slice(rows.start, rows.stop) if rows.step == 1 else np.array(rows, np.int64)
