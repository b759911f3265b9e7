"""The manifest format: one JSON object per line, in the layout of ms-swift with our extra columns.

    {"id": "clip-1", "messages": [{"role": "user", "content": "<video><audio>Which emotion?"}],
     "videos": ["clips/1.mp4"], "audios": ["clips/1.mp4"], "solution": "angry", "speaker": "s01", "split": "train"}

Media paths are relative to the dataset's `media_root`. Every error names the file, the line, the value and the fix.
docs/data.md describes all columns.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning_mmrl.data.formats.lines import LineError, json_object
from lightning_mmrl.data.formats.turns import quoted, read_turns
from lightning_mmrl.data.manifest import NOT_KEPT, Indexing, ManifestSamples, OpenManifest
from lightning_mmrl.data.media_files import MediaFolder
from lightning_mmrl.data.row_scan import MAX_LINE_BYTES, Piece, default_id, numbered_lines, reading, state_of
from lightning_mmrl.data.samples import RowCheck, Samples
from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.files import file_digest
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.template import control_token, control_token_refusal, media_tags
from lightning_mmrl.types.records import MediaKind, MediaRef, Message, Sample

MEDIA_COLUMNS: Mapping[str, MediaKind] = {"images": "image", "videos": "video", "audios": "audio"}
COLUMN_OF: Mapping[MediaKind, str] = {kind: column for column, kind in MEDIA_COLUMNS.items()}

_KNOWN = {"id", "solution", "speaker", "split", "start", "end", *MEDIA_COLUMNS, *MEDIA_COLUMNS.values()}

_MAX_OPENED = 16
_opened: dict[tuple[Path, Path, Path, Path | None], OpenManifest] = {}
"""Manifests that this process has opened, by path, resolved path, resolved media root and folder of the index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A usable line of a manifest, or row of another file; `within` are the words for a place that is no line."""

    file: str
    line: int
    sample: Sample
    within: str = ""

    @property
    def place(self) -> str:
        """The place as messages name it, such as `train.jsonl:3` or `train.parquet: row 3`."""
        return f"{self.file}: {self.within}" if self.within else f"{self.file}:{self.line}"

    def problem(self, group: str, reason: str) -> "Problem":
        """The problem of an entry that turns out to be unusable."""
        return Problem(file=self.file, line=self.line, group=group, reason=reason, within=self.within)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An unusable line or row: its place, as in `Entry`, the sort of fault, and the reason with its fix.

    Line 0 is a whole file.
    """

    file: str
    line: int
    group: str
    reason: str
    within: str = ""

    @property
    def place(self) -> str:
        """The place as messages name it."""
        if self.within:
            return f"{self.file}: {self.within}"
        return f"{self.file}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedManifest:
    """The content of a manifest without problems.

    Attributes:
        samples: The manifest's samples in the order of the lines.
        digest: SHA-256 of the file, in hexadecimal digits.
        notes: Sentences on how a file of another format was understood.
    """

    samples: Samples
    digest: str
    notes: tuple[str, ...] = ()


def load_manifest(
    path: Path, media_root: Path, indexing: Indexing = NOT_KEPT, checks: Sequence[RowCheck] = ()
) -> LoadedManifest:
    """Opens a manifest and checks its lines; one with the same content and media root only once in a process.

    Args:
        path: The manifest.
        media_root: Folder of the media paths.
        indexing: How it is indexed.
        checks: Checks of all samples that will be asked for; they are made while the lines are read anyway.

    Raises:
        DataError: The file is missing or empty, a line is malformed, an id repeats, or a medium is missing or outside
            `media_root`.
    """
    if not path.is_file():
        raise missing_error(path)
    place = path, path.resolve(), media_root.resolve(), indexing.folder
    found = _opened.get(place)
    if found is not None and _is_unchanged(found):
        found.ensure(checks)
        return LoadedManifest(samples=ManifestSamples(found), digest=found.digest)
    found = OpenManifest(path, media_root, parse_line, indexing, checks)
    if not len(found.index):
        raise DataError(f"manifest {path} holds no samples; add at least one line or choose another split")
    if len(_opened) >= _MAX_OPENED:
        _opened.clear()
    _opened[place] = found
    return LoadedManifest(samples=ManifestSamples(found), digest=found.digest)


def read_manifest(path: Path, media_root: Path) -> list[Sample]:
    """The samples of a manifest in a new list, see `load_manifest`."""
    return list(load_manifest(path, media_root).samples)


def _is_unchanged(manifest: OpenManifest) -> bool:
    with reading(manifest.path):
        if state_of(manifest.path) != manifest.state:
            return False
        return manifest.settled or file_digest(manifest.path) == manifest.digest


def missing_error(path: Path) -> DataError:
    """The error for a manifest that is no file."""
    return DataError(f"manifest {path} does not exist; check data.root and the split's file name")


def scan_manifest(path: Path, media_root: Path) -> Iterator[Entry | Problem]:
    """Yields every line that is not blank, as an entry or as a problem, in order.

    Raises:
        DataError: The file is missing or cannot be read.
    """
    if not path.is_file():
        raise missing_error(path)
    seen: dict[str, int] = {}
    files = MediaFolder(media_root)
    with reading(path), path.open("rb") as file:
        for number, _, encoded in numbered_lines(file, Piece(start=0, end=path.stat().st_size, first_line=1)):
            try:
                sample = parse_line(encoded, default_id=default_id(path, number))
                if sample is None:
                    continue
                for ref in sample.media:
                    files.check(ref.path)
                if sample.id in seen:
                    reason = f"id {quoted(sample.id)} was used on line {seen[sample.id]}; make ids unique"
                    raise LineError("repeated id", reason)
            except LineError as error:
                yield Problem(file=str(path), line=number, group=error.group, reason=error.reason)
            else:
                seen[sample.id] = number
                yield Entry(file=str(path), line=number, sample=sample)


def parse_line(encoded: bytes, default_id: str) -> Sample | None:
    """Parses a line without looking for its media files; returns None for a blank line.

    Raises:
        LineError: The line is malformed.
    """
    if len(encoded) > MAX_LINE_BYTES:
        raise LineError("not JSON", f"longer than {MAX_LINE_BYTES} bytes; keep media in files and name their paths")
    try:
        line = encoded.decode("utf-8-sig")
        if not line.strip():
            return None
        row = json_object(line)
    except UnicodeDecodeError as error:
        raise LineError("not JSON", f"not UTF-8 text ({error}); save the manifest as UTF-8") from error
    except DataError as error:
        raise LineError("not JSON", str(error)) from error
    return sample_of(row, default_id)


def sample_of(row: Mapping[str, Any], default_id: str) -> Sample:
    """Makes a sample of a row that has a manifest's columns; does not look for its media files.

    Raises:
        LineError: The row is malformed.
    """
    try:
        messages, used = read_turns(row)
    except DataError as error:
        raise LineError("messages", str(error)) from error
    for message in messages:
        if token := control_token(message.content):
            raise LineError("control token", f"the {message.role} turn holds {control_token_refusal(token)}")
        # Media are model inputs, and an assistant turn is model output or a target.
        if message.role == "assistant" and (tags := media_tags(message.content)):
            raise LineError(
                "media tags",
                f"the assistant turn {quoted(message.content)} holds the media tag <{tags[0]}>; media belong to the "
                "turns of user and system: reword the answer",
            )
    solution = _text(row, "solution")
    _check_label(row.get("labels"), solution)
    known = _KNOWN | used
    return Sample(
        id=_text(row, "id") or default_id,
        messages=messages,
        media=_media(row, messages),
        solution=solution,
        speaker=_text(row, "speaker"),
        split=_text(row, "split"),
        extras={key: value for key, value in row.items() if key not in known},
    )


def _media(row: Mapping[str, Any], messages: tuple[Message, ...]) -> tuple[MediaRef, ...]:
    span = _span(row, "the line")
    queues = {kind: _references(row, column, kind, span) for column, kind in MEDIA_COLUMNS.items()}
    if span != (None, None) and not queues["video"] and not queues["audio"]:
        raise LineError("span", "'start' and 'end' stand on a line without video or audio; remove them")
    tags = [kind for message in messages for kind in media_tags(message.content)]
    for column, kind in MEDIA_COLUMNS.items():
        if tags.count(kind) != len(queues[kind]):
            raise LineError(
                "media tags",
                f"{tags.count(kind)} <{kind}> tags in the messages but {len(queues[kind])} entries in "
                f"'{column}'; there must be one entry per tag",
            )
    pending = {kind: iter(refs) for kind, refs in queues.items()}
    return tuple(next(pending[kind]) for kind in tags)


def _references(
    row: Mapping[str, Any], column: str, kind: MediaKind, span: tuple[float | None, float | None]
) -> list[MediaRef]:
    if row.get(column) and row.get(kind):
        raise LineError("media entries", f"both {column!r} and {kind!r} are given; keep {column!r}")
    entries = row.get(column) or row.get(kind) or []
    entries = [entries] if isinstance(entries, str | dict) else entries
    if not isinstance(entries, list):
        raise LineError("media entries", f"{column!r} is {quoted(entries)}; it must be a list of paths")
    return [_reference(entry, column, kind, span) for entry in entries]


def _reference(entry: Any, column: str, kind: MediaKind, span: tuple[float | None, float | None]) -> MediaRef:
    if isinstance(entry, str):
        start, end = (None, None) if kind == "image" else span
        return MediaRef(kind=kind, path=entry, start_s=start, end_s=end)
    what = f"{column!r} entry {quoted(entry)}"
    fields = {"path": entry} if not isinstance(entry, dict) else {k: v for k, v in entry.items() if v is not None}
    if "bytes" in fields:
        raise LineError("media entries", f"{column!r} has an entry with inline bytes; write a file and give its path")
    if not isinstance(fields.get("path"), str) or not fields.keys() <= {"path", "start", "end"}:
        raise LineError("media entries", f"{what} must be a path or {{path, start, end}}; correct it")
    own = _span(fields, what)
    if kind == "image" and own != (None, None):
        raise LineError("span", f"{what} gives an image a time; remove 'start' and 'end'")
    start, end = (None, None) if kind == "image" else span if own == (None, None) else own
    return MediaRef(kind=kind, path=fields["path"], start_s=start, end_s=end)


def _span(fields: Mapping[str, Any], what: str) -> tuple[float | None, float | None]:
    start, end = (_seconds(fields, key) for key in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise LineError("span", f"{what} ends before it starts ({start} to {end} s); 'end' must be after 'start'")
    return start, end


def _seconds(fields: Mapping[str, Any], key: str) -> float | None:
    value = fields.get(key)
    if value is None:
        return None
    # 1e9 s are 30 years; an integer beyond about 1e308 cannot be converted to float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9:
        raise LineError("span", f"{key!r} is {quoted(value)}; it must be a time in seconds, at least 0")
    return float(value)


def _text(row: Mapping[str, Any], key: str) -> str | None:
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
        return str(value)
    raise LineError("column type", f"{key!r} is {quoted(value)}; it must be a string")


def _check_label(labels: Any, solution: str | None) -> None:
    """Checks the solution against the label set of its own line."""
    if labels is None:
        return
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise LineError("label", f"'labels' is {quoted(labels)}; it must be a list of strings")
    try:
        matcher = label_matcher(tuple(labels))
    except ConfigError as error:
        raise LineError("label", f"'labels' is {quoted(labels)}: {str(error)[:200]}") from error
    if solution is not None and matcher.match(solution) is None:
        raise LineError(
            "label", f"solution {quoted(solution)} is none of 'labels' {quoted(labels)}; correct one of them"
        )


@lru_cache(maxsize=64)
def label_matcher(labels: tuple[str, ...]) -> LabelMatcher:
    """The matcher that rewards and evaluation use for these labels.

    Raises:
        ConfigError: Two labels are equal after normalization, or one is blank.
    """
    return LabelMatcher(labels=labels)
