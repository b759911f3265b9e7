"""A CSV with a row for each question: columns of media, question and answer, or a file and its label."""

import mimetypes
from collections.abc import Sequence
from typing import Any

from lightning_mmrl.data.formats.assembly import MediaColumns, Reading, assembled, gold, media_column, text_of
from lightning_mmrl.data.formats.chat import question
from lightning_mmrl.data.formats.csv_times import seconds_of
from lightning_mmrl.data.formats.label_csv import COLUMN_NAMES
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.readers.protocol import ColumnReader
from lightning_mmrl.data.formats.storage import Peek
from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.schema import COLUMN_OF, LineError
from lightning_mmrl.prompts.template import DEFAULT_QUESTION
from lightning_mmrl.types.records import MediaKind

_ASKED = ("question", "problem", "prompt", "query")
_FILES = tuple(name for name in COLUMN_NAMES["file"] if name not in COLUMN_OF)


def _recognised(peek: Peek) -> bool:
    return peek.storage == "csv"


def _canonical(row: Row, reading: Reading) -> Row:
    row = {name.lower(): cell for name, cell in row.items()}
    media: MediaColumns = {kind: media_column(row, kind) for kind in COLUMN_OF}
    file = _first(row, _FILES)
    if file is not None:
        kind = _kind_of(row[file], file)
        if media[kind][1] is not None:
            raise LineError("media entries", f"both {file!r} and {media[kind][0]!r} name a {kind}; keep one of them")
        media[kind] = file, row[file]
        reading.notes[f"{file!r} is read as {kind} by its name; sound of a video takes a column 'audio'"] += 1
    asked, label = _first(row, _ASKED), _first(row, COLUMN_NAMES["label"])
    if label is None:
        raise LineError("label", f"no answer in any of {', '.join(COLUMN_NAMES['label'])}; fill it in or drop the row")
    if asked is None:
        reading.notes[f"no column of {', '.join(_ASKED)}: the question is {DEFAULT_QUESTION!r}"] += 1
    turns = question(DEFAULT_QUESTION if asked is None else row[asked], asked or "question")
    speaker, split = _first(row, COLUMN_NAMES["speaker"]), _first(row, COLUMN_NAMES["split"])
    times = {purpose: _first(row, COLUMN_NAMES[purpose]) for purpose in ("start", "end")}
    more: dict[str, Any] = {purpose: _seconds(row, column) for purpose, column in times.items()}
    more |= {"speaker": row.get(speaker or ""), "split": row.get(split or "")}
    used = {name for name in (asked, label, speaker, split, *times.values()) if name is not None}
    solution = gold(text_of(row, label), label, reading)
    return assembled(row, reading, turns, used=used, solution=solution, media=media, more=more)


def _first(row: Row, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _kind_of(file: str, column: str) -> MediaKind:
    named = (mimetypes.guess_type(file)[0] or "").partition("/")[0]
    for kind in COLUMN_OF:
        if kind == named:
            return kind
    reason = f"{column!r} is {quoted(file)}, whose name says no kind of media; use a column 'video', 'audio' or 'image'"
    raise LineError("media entries", reason)


def _seconds(row: Row, column: str | None) -> float | None:
    if column is None:
        return None
    value = seconds_of(row[column], comma_is_decimal=False)
    if value is None or value > 1e9:
        reason = f"{column!r} is {quoted(row[column])}; it must be a time in seconds, such as 65.5, or 1:05.5"
        raise LineError("span", reason)
    return value


CSV = ColumnReader(
    name="csv",
    layout="CSV: video, audio, image or file; question; answer or label; speaker, split, start, end",
    recognised=_recognised,
    canonical=_canonical,
)
