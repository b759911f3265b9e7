"""A CSV of labels: one clip per row, column names and delimiter found out or given."""

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.schema import LineError, Problem
from lightning_mmrl.errors import DataError

COLUMN_NAMES: Mapping[str, tuple[str, ...]] = {
    "file": ("file", "path", "clip", "video", "filename", "file_name", "file_path", "name"),
    "label": ("label", "emotion", "class", "solution", "answer"),
    "speaker": ("speaker", "speaker_id", "actor", "subject"),
    "split": ("split", "set", "subset", "partition"),
    "start": ("start", "start_s", "start_time"),
    "end": ("end", "end_s", "end_time"),
    "reasoning": ("reasoning", "thought", "rationale", "explanation"),
    "id": ("id",),
}
"""What a column is for, and the names it is recognized by."""

SPLIT_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}

_DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvRow:
    """One row: a clip, its label, and what else the file says of it."""

    line: int
    file: str
    label: str
    speaker: str | None = None
    split: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    reasoning: str | None = None
    id: str | None = None
    extras: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCsv:
    """What a CSV holds; `columns` says which of its columns was taken for what."""

    rows: tuple[CsvRow, ...]
    problems: tuple[Problem, ...]
    columns: Mapping[str, str]


def read_label_csv(path: Path, names: Mapping[str, str | None] | None = None) -> LabelCsv:
    """All rows; one that cannot be used becomes a problem.

    Args:
        path: The CSV, in UTF-8, with a header line.
        names: Column names by purpose (see `COLUMN_NAMES`) where the usual ones do not fit.

    Raises:
        DataError: The file cannot be read, or has no column of files or of labels.
    """
    lines = _text(path).splitlines(keepends=True)
    reader = csv.reader(lines, delimiter=_delimiter(lines[0] if lines else ""), strict=True)
    rows: list[CsvRow] = []
    problems: list[Problem] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        columns = _columns(path, header, names or {})
        for line, fields in _records(reader):
            try:
                rows.append(_row(line, _cells(header, fields), columns))
            except LineError as error:
                problems.append(Problem(file=str(path), line=line, group=error.group, reason=error.reason))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a CSV row ({error}); check its quotes") from error
    return LabelCsv(rows=tuple(rows), problems=tuple(problems), columns=columns)


def _text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path} does not exist; name the CSV of labels")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{before}: not UTF-8 text; save the file as CSV UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its rights") from error


def _delimiter(header: str) -> str:
    """The most frequent one in the header: names hold none of them, unlike the texts below."""
    return max(_DELIMITERS, key=header.count)


def _columns(path: Path, header: list[str], names: Mapping[str, str | None]) -> dict[str, str]:
    """Purpose to column name; the first usual name that the header has, whatever its case."""
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{path}:1: column {quoted(twice)} appears twice; rename one")
    by_case = {name.lower(): name for name in reversed(header)}
    columns = {}
    for purpose, usual in COLUMN_NAMES.items():
        wanted = names.get(purpose)
        found = next((by_case[name] for name in usual if name in by_case), None) if wanted is None else wanted
        if wanted is not None and wanted not in header:
            raise DataError(f"{path}:1: no column {quoted(wanted)}; the header has {_shown(header)}")
        if found is not None:
            columns[purpose] = found
    for purpose in ("file", "label"):
        if purpose not in columns:
            raise DataError(
                f"{path}:1: no column of {purpose}s ({', '.join(COLUMN_NAMES[purpose])}); "
                f"name it by --{purpose}-column, the header has {_shown(header)}"
            )
    return columns


def _shown(header: list[str]) -> str:
    return ", ".join(quoted(name) for name in header[:12]) or "nothing"


def _records(reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, with the line they begin on."""
    begin = reader.line_num + 1  # type: ignore[attr-defined]
    for fields in reader:
        if any(field.strip() for field in fields):
            yield begin, fields
        begin = reader.line_num + 1  # type: ignore[attr-defined]


def _cells(header: list[str], fields: list[str]) -> dict[str, str]:
    if len(fields) != len(header):
        raise LineError("not a CSV row", f"{len(fields)} fields but {len(header)} columns; check quotes and delimiters")
    return {name: text.strip() for name, text in zip(header, fields, strict=True)}


def _row(line: int, cells: Mapping[str, str], columns: Mapping[str, str]) -> CsvRow:
    def cell(purpose: str) -> str | None:
        return cells[columns[purpose]] or None if purpose in columns else None

    file, label = cell("file"), cell("label")
    if file is None:
        raise LineError("missing file", "no file is named; fill it in or remove the row")
    if label is None:
        raise LineError("label", f"{quoted(file)} has no label; fill it in or remove the row")
    return CsvRow(
        line=line,
        file=file,
        label=label,
        speaker=cell("speaker"),
        split=_split(cell("split"), columns),
        start_s=_seconds(cell("start"), "start"),
        end_s=_seconds(cell("end"), "end"),
        reasoning=cell("reasoning"),
        id=cell("id"),
        extras={name: text for name, text in cells.items() if name not in columns.values() and text},
    )


def _split(name: str | None, columns: Mapping[str, str]) -> str | None:
    if name is not None and name.lower() not in SPLIT_NAMES:
        known = ", ".join(SPLIT_NAMES)
        raise LineError("split", f"{columns['split']} is {quoted(name)}; it must be one of {known}")
    return None if name is None else SPLIT_NAMES[name.lower()]


def _seconds(text: str | None, purpose: str) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1e9:
        raise LineError("span", f"{purpose} is {quoted(text)}; it must be a time in seconds, at least 0")
    return value
