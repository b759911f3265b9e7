"""Reads a CSV of labels with one clip per row; column names and delimiter are detected or given."""

import csv
import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_mmrl.data.formats.csv_text import csv_text, delimiter_of
from lightning_mmrl.data.formats.csv_times import seconds_of
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
"""Purpose of a column, and the names by which it is recognized."""

SPLIT_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}

NO_COLUMN = ""
"""Passed in place of a column's name to say that no column has this purpose, whatever the header says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvRow:
    """One row: a clip, its label, and its other cells."""

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
    """The rows of a CSV; `columns` maps purposes to columns, and `notes` name columns that looked like a split."""

    rows: tuple[CsvRow, ...]
    problems: tuple[Problem, ...]
    columns: Mapping[str, str]
    notes: tuple[str, ...] = ()


def read_label_csv(
    path: Path, names: Mapping[str, str | None] | None = None, *, encoding: str | None = None
) -> LabelCsv:
    """Reads all rows; an unusable one becomes a problem. Only CR and LF end a row.

    Args:
        path: The CSV, with a header line.
        names: Column names by purpose (see `COLUMN_NAMES`), for columns without a usual name; `NO_COLUMN` if no column
            has the purpose.
        encoding: See `csv_text`.

    Raises:
        DataError: The file cannot be read, or has no column of files or no column of labels.
    """
    text = csv_text(path, encoding)
    delimiter, is_declared = delimiter_of(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        records = list(_records(reader))[1 if is_declared else 0 :]
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a CSV row ({error}); check its quotes") from error
    (line, names_found), *records = records or [(1, [])]
    header = [name.strip() for name in names_found]
    columns = _columns(f"{path}:{line}", header, names or {})
    columns, notes = _with_split(header, columns, names or {}, [fields for _, fields in records])
    switched_off = {purpose for purpose, name in (names or {}).items() if name == NO_COLUMN}
    ignored = {name for name in header if any(name.lower() in COLUMN_NAMES[each] for each in switched_off)}
    rows: list[CsvRow] = []
    problems: list[Problem] = []
    for line, fields in records:
        try:
            if len(fields) != len(header):
                raise LineError(
                    "not a CSV row", f"{len(fields)} fields but {len(header)} columns; check quotes and delimiters"
                )
            cells = {name: text.strip() for name, text in zip(header, fields, strict=True)}
            extras = {name: cell for name, cell in cells.items() if name not in (*columns.values(), *ignored) and cell}
            rows.append(_row(line, cells, columns, extras, comma_is_decimal=delimiter != ","))
        except LineError as error:
            problems.append(Problem(file=str(path), line=line, group=error.group, reason=error.reason))
    return LabelCsv(rows=tuple(rows), problems=tuple(problems), columns=columns, notes=tuple(notes))


def _columns(place: str, header: list[str], names: Mapping[str, str | None]) -> dict[str, str]:
    """Maps each purpose to a column name: the given one, or the first usual name in the header, in any case."""
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{place}: column {quoted(twice)} appears twice; rename one")
    shown = ", ".join(quoted(name) for name in header[:12]) or "nothing"
    by_case = {name.lower(): name for name in reversed(header)}
    columns = {}
    for purpose, usual in COLUMN_NAMES.items():
        wanted = names.get(purpose)
        found = next((by_case[name] for name in usual if name in by_case), None) if wanted is None else wanted
        if wanted and wanted not in header:
            raise DataError(f"{place}: no column {quoted(wanted)}; the header has {shown}")
        if found:
            columns[purpose] = found
    for purpose in ("file", "label"):
        if purpose not in columns:
            raise DataError(
                f"{place}: no column of {purpose}s ({', '.join(COLUMN_NAMES[purpose])}); "
                f"name it by --{purpose}-column, the header has {shown}"
            )
    return columns


def _with_split(
    header: list[str], columns: dict[str, str], names: Mapping[str, str | None], records: Sequence[list[str]]
) -> tuple[dict[str, str], list[str]]:
    """Returns the columns, without a split column that holds no splits, and notes about the other candidates.

    A column `set` may hold sets of any kind. A column that the user names is always used; one
    called `split` gives way only if it names no split and another candidate does.
    """
    if "split" not in columns or names.get("split") is not None:
        return columns, []
    found = {
        name: {fields[index].strip() for fields in records if index < len(fields)} - {""}
        for index, name in enumerate(header)
        if name.lower() in COLUMN_NAMES["split"]
    }
    of_splits = [name for name, values in found.items() if any(value.lower() in SPLIT_NAMES for value in values)]
    named = [name for name in found if name.lower() == "split"]
    of_splits.sort(key=lambda name: COLUMN_NAMES["split"].index(name.lower()))
    chosen = next(iter(of_splits or named), None)
    rest = {purpose: name for purpose, name in columns.items() if purpose != "split"}
    notes = [
        f"column {quoted(name)} names no splits (it has {', '.join(map(quoted, sorted(values)[:3]))}): kept as a "
        f"column of its own; --split-column {shlex.quote(name)} takes it for the split"
        for name, values in found.items()
        if name != chosen and name not in of_splits and values
    ]
    return (rest if chosen is None else {**rest, "split": chosen}), notes


def _records(reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows that are not blank, each with the number of its first line."""
    begin = reader.line_num + 1  # type: ignore[attr-defined]
    for fields in reader:
        if any(field.strip() for field in fields):
            yield begin, fields
        begin = reader.line_num + 1  # type: ignore[attr-defined]


def _row(
    line: int,
    cells: Mapping[str, str],
    columns: Mapping[str, str],
    extras: Mapping[str, str],
    *,
    comma_is_decimal: bool,
) -> CsvRow:
    def cell(purpose: str) -> str | None:
        return cells[columns[purpose]] or None if purpose in columns else None

    file, label = cell("file"), cell("label")
    if file is None:
        raise LineError("missing file", "no file is named; fill it in or remove the row")
    if label is None:
        raise LineError("label", f"{quoted(file)} has no label; fill it in or remove the row")
    split = cell("split")
    if split is not None and split.lower() not in SPLIT_NAMES:
        raise LineError(
            "split",
            f"{columns['split']} is {quoted(split)}; it must be one of {', '.join(SPLIT_NAMES)}, or give "
            "--split-column '' for no split",
        )
    return CsvRow(
        line=line,
        file=file,
        label=label,
        speaker=cell("speaker"),
        split=None if split is None else SPLIT_NAMES[split.lower()],
        start_s=_seconds(cell("start"), "start", comma_is_decimal),
        end_s=_seconds(cell("end"), "end", comma_is_decimal),
        reasoning=cell("reasoning"),
        id=cell("id"),
        extras=extras,
    )


def _seconds(text: str | None, purpose: str, comma_is_decimal: bool) -> float | None:
    if text is None:
        return None
    value = seconds_of(text, comma_is_decimal=comma_is_decimal)
    if value is None or value > 1e9:
        raise LineError(
            "span",
            f"{purpose} is {quoted(text)}; it must be a time in seconds, such as 65.5, or a clock time, as 1:05.5",
        )
    return value
