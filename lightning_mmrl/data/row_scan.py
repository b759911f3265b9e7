"""Reads pieces of a large manifest, in worker processes or in this one, and keeps columns instead of samples."""

import hashlib
import os
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lightning_mmrl.data.formats.lines import LineError
from lightning_mmrl.data.media_files import MediaFolder
from lightning_mmrl.data.samples import RowCheck, content_digest, kinds_of
from lightning_mmrl.errors import DataError
from lightning_mmrl.types.records import Sample
from lightning_mmrl.workers.pool import DeadlinePool

MAX_LINE_BYTES = 16 * 2**20
PIECE_BYTES = 8 * 2**20
PIECE_DEADLINE_S = 600.0
"""Seconds for a piece, which takes less than one; then its worker hangs."""
_PIECES_AT_ONCE = 8
"""Pieces for each worker between two looks at what was found."""

ParseLine = Callable[[bytes, str], Sample | None]
"""Makes a sample of a line and of the id that it has if it names none; None for a blank line. Raises LineError."""


class FileState(NamedTuple):
    """The state of a file: it changes whenever the content does, unless within the resolution of the clock.

    The number of the device is left out, since it differs between machines and between restarts of one.
    """

    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def state_of(file: int | Path) -> FileState:
    """The state of a file, by its path or by a descriptor."""
    found = os.stat(file)
    return FileState(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def default_id(path: Path, line: int) -> str:
    """The id of a sample whose line names none."""
    return f"{path.stem}-{line:06d}"


def changed_error(path: Path) -> DataError:
    """The error for a manifest that is no longer the one that was opened."""
    return DataError(f"manifest {path} was changed while it was in use; leave it as it is during a run, and start anew")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Whole lines of a file, by the bytes where they start and end; `first_line` is the number of the first one."""

    start: int
    end: int
    first_line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LineProblem:
    """An unusable line: its number, the sort of fault, and the reason with its fix."""

    line: int
    group: str
    reason: str


@dataclass(slots=True, kw_only=True)
class Scanned:
    """The samples of a piece, in columns of one entry for each.

    Attributes:
        offsets: Where its line starts, in bytes.
        sizes: Bytes of its line.
        lines: Number of its line.
        checksums: CRC-32 of its line.
        kinds: See `Samples.kinds`.
        contents: `content_digest`, as a number.
        id_hashes: A hash of its id.
        id_sizes: Bytes of its id.
        solutions: The two halves of a hash of its solution, one after the other; zeros for none.
        ids: All ids, one after the other.
        media: Paths of media, each once.
        num_samples: The number of samples.
        num_rows: Lines that are not blank, as bytes.
        problem: The first unusable line; nothing is read beyond it.
        failures: For each check the first sample that fails it, with the reason.
    """

    offsets: array = field(default_factory=lambda: array("q"))
    sizes: array = field(default_factory=lambda: array("i"))
    lines: array = field(default_factory=lambda: array("q"))
    checksums: array = field(default_factory=lambda: array("I"))
    kinds: array = field(default_factory=lambda: array("B"))
    contents: array = field(default_factory=lambda: array("I"))
    id_hashes: array = field(default_factory=lambda: array("Q"))
    id_sizes: array = field(default_factory=lambda: array("i"))
    solutions: array = field(default_factory=lambda: array("Q"))
    ids: bytearray = field(default_factory=bytearray)
    media: dict[str, None] = field(default_factory=dict)
    num_samples: int = 0
    num_rows: int = 0
    problem: LineProblem | None = None
    failures: list[tuple[int, str] | None] = field(default_factory=list)

    def add(self, sample: Sample, encoded: bytes, offset: int, line: int) -> None:
        """Adds a sample with the content, the offset and the number of its line."""
        name = sample.id.encode()
        self.offsets.append(offset)
        self.lines.append(line)
        self.sizes.append(len(encoded))
        self.checksums.append(zlib.crc32(encoded))
        self.kinds.append(kinds_of(sample))
        self.contents.append(int(content_digest(sample), 16))
        self.id_hashes.append(id_hash(name))
        self.id_sizes.append(len(name))
        self.ids += name
        text = sample.solution
        halves = bytes(16) if text is None else hashlib.blake2b(text.encode(), digest_size=16).digest()
        self.solutions.frombytes(halves)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """Reads one piece of a manifest at a time.

    Attributes:
        path: The manifest.
        state: Its state when it was opened.
        media_root: Folder of the media paths.
        parse: Makes samples of lines.
        checks: Checks of each sample.
        fills: Whether the columns are filled, and not only the checks made.
    """

    path: Path
    state: FileState
    media_root: Path
    parse: ParseLine
    checks: Sequence[RowCheck]
    fills: bool

    def __call__(self, piece: Piece) -> Scanned:
        """Reads a piece, up to its first unusable line.

        Raises:
            DataError: The file cannot be read, or has changed.
        """
        found = Scanned(failures=[None] * len(self.checks))
        media = MediaFolder(self.media_root)
        with reading(self.path), self.path.open("rb") as file:
            if state_of(file.fileno()) != self.state:
                raise changed_error(self.path)
            for line, offset, encoded in numbered_lines(file, piece):
                found.num_rows += bool(encoded.strip())
                try:
                    sample = self.parse(encoded, default_id(self.path, line))
                    if sample is None:
                        continue
                    for ref in sample.media:
                        if ref.path not in found.media:
                            media.check(ref.path)
                            found.media[ref.path] = None
                except LineError as error:
                    found.problem = LineProblem(line=line, group=error.group, reason=error.reason)
                    return found
                self._check(sample, found)
                found.num_samples += 1
                if self.fills:
                    found.add(sample, encoded, offset, line)
        return found

    def _check(self, sample: Sample, found: Scanned) -> None:
        for number, check in enumerate(self.checks):
            if found.failures[number] is None and (reason := check.reason(sample)) is not None:
                found.failures[number] = found.num_samples, reason


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns an error of reading a manifest into one that names it.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"manifest {path} cannot be read ({error.strerror}); check the file and its rights") from error


def numbered_lines(file: BinaryIO, piece: Piece) -> Iterator[tuple[int, int, bytes]]:
    """Yields number, offset and bytes of each line, but only the beginning of a line that is too long."""
    file.seek(piece.start)
    at, line = piece.start, piece.first_line
    while at < piece.end and (encoded := file.readline(MAX_LINE_BYTES + 1)):
        yield line, at, encoded
        at += len(encoded)
        while len(encoded) > MAX_LINE_BYTES and not encoded.endswith(b"\n"):
            encoded = file.readline(MAX_LINE_BYTES + 1)
            at += len(encoded)
        line += 1


def pieces_of(descriptor: int) -> tuple[str, list[Piece], int]:
    """The SHA-256 of an open file, its pieces, and the number of its lines."""
    digest, pieces = hashlib.sha256(), []
    start, at, line = 0, 0, 1
    while block := os.pread(descriptor, PIECE_BYTES, at):
        digest.update(block)
        if length := block.rfind(b"\n") + 1:
            pieces.append(Piece(start=start, end=at + length, first_line=line))
            start = at + length
            line += block.count(b"\n")
        at += len(block)
    if start < at:
        pieces.append(Piece(start=start, end=at, first_line=line))
        line += 1
    return digest.hexdigest(), pieces, line - 1


def scanned(scan: Scan, pieces: Sequence[Piece], *, workers: int, on_done: Callable[[int], None]) -> Iterator[Scanned]:
    """Yields what is in each piece, in order; `on_done` hears how many pieces are finished.

    Raises:
        DataError: The file cannot be read, or has changed.
    """
    if not workers or len(pieces) < 2:
        for number, piece in enumerate(pieces, start=1):
            yield scan(piece)
            on_done(number)
        return
    left, done = iter(pieces), count(1)
    workers = min(workers, len(pieces))
    pool = DeadlinePool(scan, num_workers=workers, deadline_s=PIECE_DEADLINE_S, process_name="mmrl-manifest")
    with pool:
        while some := list(islice(left, _PIECES_AT_ONCE * workers)):
            for outcome in pool.map_patiently(some, on_done=lambda *_: on_done(next(done))):
                if outcome.error is not None:
                    hint = "" if str(scan.path) in outcome.error else "; run again with data.media.decode_workers=0"
                    raise DataError(f"{scan.path}: {outcome.error}{hint}" if hint else outcome.error)
                yield outcome.value


def id_hash(name: bytes) -> int:
    """A hash of an id, by which its sample is found."""
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
