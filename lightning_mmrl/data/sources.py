"""Reads samples from a source in any known format: a file, a folder of shards, or a dataset_info.json."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_mmrl.data.formats.assembly import Reading
from lightning_mmrl.data.formats.place import Place, Row
from lightning_mmrl.data.formats.readers.canonical import CANONICAL
from lightning_mmrl.data.formats.readers.protocol import Reader
from lightning_mmrl.data.formats.readers.registry import AUTO, reader_of
from lightning_mmrl.data.formats.storage import CHOICE, Parts, num_file_rows, parts_of, storage_of
from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.manifest import NOT_KEPT, Indexing
from lightning_mmrl.data.media_files import MediaFolder
from lightning_mmrl.data.row_index import IndexFolder, Outcomes, code_digest, key_of, recalled_facts
from lightning_mmrl.data.samples import CheckedSamples, RowCheck
from lightning_mmrl.data.schema import (
    Entry,
    LineError,
    LoadedManifest,
    Problem,
    load_manifest,
    sample_of,
    scan_manifest,
)
from lightning_mmrl.errors import DataError
from lightning_mmrl.files import file_digest
from lightning_mmrl.types.records import Sample

_MAX_READ = 16
_read: dict[tuple[Path, Path, str, str, Path | None], LoadedManifest] = {}
"""Sources that this process has read, by path, media root, format, digest, and folder of outcomes of checks."""


class Source:
    """A source whose format is known.

    Args:
        path: The file or folder; `PATH#PART` for one of several parts.
        media_root: Folder that paths of media are relative to, and below which media that lie in a table are written.
        format_name: Name of the format; None or `auto` recognises it by the beginning of the content.

    Attributes:
        reader: The reader of its format.
        files: The files that hold the rows.

    Raises:
        ConfigError: There is no such format.
        DataError: The source does not exist, or its format cannot be told.
    """

    def __init__(self, path: Path, media_root: Path, format_name: str | None = None) -> None:
        self._path = path
        self._reading = Reading(media_root=media_root)
        self._parts: Parts = parts_of(path)
        self.reader: Reader = reader_of(self._parts, format_name or AUTO)
        self.files = tuple(self.reader.files(self._parts))

    @property
    def notes(self) -> list[str]:
        """Sentences on how the rows that were read so far were understood."""
        how = [f"{self._path}: read as {self.reader.name}"] if self.reader is not CANONICAL else []
        found = self._reading.notes.items()
        return how + [f"{self._path}: {note} ({number} time{'s' * (number != 1)})" for note, number in found]

    @property
    def digest(self) -> str:
        """SHA-256 of the file, or of the digests of several files, in hexadecimal digits."""
        return _digest(self.files if self._parts.files == self.files else (*self._parts.files, *self.files))

    def scan(self) -> Iterator[Entry | Problem]:
        """Yields every row, as an entry or as a problem, in order.

        Raises:
            DataError: A file cannot be read.
        """
        if self.reader is CANONICAL and len(self.files) == 1:
            yield from scan_manifest(self.files[0], self._reading.media_root)
            return
        seen: dict[str, str] = {}
        file, media = str(self._path), MediaFolder(self._reading.media_root)
        for number, (path, (place, row)) in enumerate(self.reader.rows(self._parts, self._reading), start=1):
            # Numbers of rows repeat in further files; a row is known by the number of its line or by its place in all.
            line = place.row if place.by_line and not place.file else number
            try:
                if isinstance(row, LineError):
                    raise row
                sample = self._sample(path, place, row, seen, media)
            except LineError as error:
                yield Problem(file=file, line=line, group=error.group, reason=error.reason, within=place.where)
            else:
                yield Entry(file=file, line=line, sample=sample, within=place.where)

    def _sample(self, path: Path, place: Place, row: Row, seen: dict[str, str], media: MediaFolder) -> Sample:
        own = row.get("id")
        default = f"{path.stem}-{place.row:06d}"
        if own is not None and self.reader is not CANONICAL and str(own) in seen:
            self._reading.notes["an id stood in an earlier row: made unique by the number of the row"] += 1
            row = {**row, "id": f"{own}-row{place.row}"}
        sample = sample_of(row, default_id=default)
        for ref in sample.media:
            media.check(ref.path)
        if sample.id in seen:
            raise LineError("repeated id", f"id {quoted(sample.id)} was used at {seen[sample.id]}; make ids unique")
        seen[sample.id] = place.where or f"line {place.row}"
        return sample


def load_source(
    path: Path,
    media_root: Path,
    format: str | None = None,
    indexing: Indexing = NOT_KEPT,
    checks: Sequence[RowCheck] = (),
) -> LoadedManifest:
    """Reads and checks all samples of a source; one with the same content is read only once in a process.

    The samples of a canonical manifest are read when they are asked for, those of other formats stay in memory.

    Args:
        path: The source.
        media_root: Folder that paths of media are relative to.
        format: Name of the format; None or `auto` recognises it.
        indexing: How a canonical manifest is indexed, and where the outcomes of slow checks are kept.
        checks: Checks of all samples that will be asked for, see `load_manifest`.

    Raises:
        ConfigError: There is no such format.
        DataError: The source is missing or empty, its format cannot be told, a row is malformed, or a medium is missing
            or outside `media_root`.
    """
    source = Source(path, media_root, format)
    if source.reader is CANONICAL and len(source.files) == 1:
        return load_manifest(source.files[0], media_root, indexing, checks)
    key = path.resolve(), media_root.resolve(), source.reader.name, source.digest
    if (found := _read.get((*key, indexing.folder))) is not None:
        return found
    samples = []
    for item in source.scan():
        if isinstance(item, Problem):
            raise DataError(str(item))
        samples.append(item.sample)
    if not samples:
        raise DataError(f"manifest {path} holds no samples; add at least one row or choose another split")
    if len(_read) >= _MAX_READ:
        _read.clear()
    kept = None if indexing.folder is None else IndexFolder(indexing.folder)
    outcomes = Outcomes(key_of("source", *map(str, key), code_digest()), kept, kept)
    found = LoadedManifest(samples=CheckedSamples(samples, outcomes), digest=key[-1], notes=tuple(source.notes))
    _read[(*key, indexing.folder)] = found
    return found


def read_source(path: Path, media_root: Path, format: str | None = None) -> list[Sample]:
    """The samples of a source in a new list, see `load_source`."""
    return list(load_source(path, media_root, format).samples)


def place_of(sample_id: str, path: Path, media_root: Path, format: str | None = None) -> str:
    """The place of a sample in its source, such as `train.jsonl:3`; the source's path if it has no such sample."""
    entries = (item for item in Source(path, media_root, format).scan() if isinstance(item, Entry))
    return next((entry.place for entry in entries if entry.sample.id == sample_id), str(path))


def source_digest(path: Path, format: str | None = None, kept: Path | None = None) -> str | None:
    """SHA-256 of a source without reading its rows; None if the source does not exist.

    Args:
        path: The source.
        format: Name of the format; None or `auto` recognises it.
        kept: Folder with indexes of manifests; a manifest that has one is not read.

    Raises:
        DataError: It exists, and its files or its format cannot be told.
    """
    if (facts := recalled_facts(kept, path)) is not None:
        return facts.digest
    if path.is_file() and storage_of(path) != "info":
        return file_digest(path)
    return Source(path, path.parent, format).digest if _exists(path) else None


def num_rows(path: Path, format: str | None = None, kept: Path | None = None) -> int | None:
    """The number of rows of a source, good or bad; None if the source does not exist.

    Args:
        path: The source.
        format: Name of the format; None or `auto` recognises it.
        kept: As in `source_digest`.

    Raises:
        DataError: It exists, and its files or its format cannot be told, or a file cannot be read.
    """
    if (facts := recalled_facts(kept, path)) is not None:
        return facts.num_rows
    if not _exists(path):
        return None
    return sum(num_file_rows(file, storage_of(file)) for file in Source(path, path.parent, format).files)


def _exists(path: Path) -> bool:
    name, _, choice = path.name.partition(CHOICE)
    return path.exists() or (bool(choice) and (path.with_name(name) if name else path.parent).exists())


def _digest(files: tuple[Path, ...]) -> str:
    if len(files) == 1:
        return file_digest(files[0])
    parts = [f"{path.name} {file_digest(path)}" for path in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
