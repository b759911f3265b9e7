"""Assembles a canonical row from the turns, media, solution and other columns of a published row."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lightning_mmrl.data.formats.inline_media import data_url_bytes, is_data_url, kept_inline
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.turns import TURN_COLUMNS, quoted
from lightning_mmrl.data.schema import COLUMN_OF, LineError
from lightning_mmrl.prompts.template import media_tags
from lightning_mmrl.types.records import MediaKind

_OWN = TURN_COLUMNS | {"id", "solution", "labels", *COLUMN_OF, *COLUMN_OF.values()}
"""Columns with a meaning in canonical rows; a column of another meaning cannot keep such a name."""
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
_PATH_KEYS = ("path", "url", "image_url", "video_url", "audio_url")
_ROOT_TRIED = 12

MediaColumns = dict[MediaKind, tuple[str, Any]]
"""Name and value of the column that holds the media of each kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """The turns of a row.

    Attributes:
        column: The column that they come from.
        messages: The turns, as role and content with tags.
        media: Media that the content itself holds, by kind and in the order of their tags.
    """

    column: str
    messages: Sequence[Mapping[str, str]]
    media: Mapping[MediaKind, Sequence[Any]] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Reading:
    """One reading of a source.

    Attributes:
        media_root: Folder that paths of media are relative to.
        notes: Sentences on how rows were understood, and for how many rows.
        roots: Leading folders of published paths that were left out, because the rest lies below the media root.
    """

    media_root: Path
    notes: Counter[str] = field(default_factory=Counter)
    roots: dict[str, None] = field(default_factory=dict)

    def entry(self, value: Any, kind: MediaKind, column: str) -> str | dict[str, Any]:
        """A canonical entry for a medium: a path below the media root, with a span if the entry has one.

        Raises:
            LineError: The value names no medium.
            DataError: A medium in the row cannot be written to a file.
        """
        what = f"{column!r} entry {quoted(value)}"
        span: dict[str, Any] = {}
        if isinstance(value, dict):
            content = value.get("bytes")
            if not isinstance(content, bytes):
                if content is not None:
                    reason = f"{what} has 'bytes' that are no bytes; write the file as parquet or arrow"
                    raise LineError("media entries", reason)
                span = {key: value[key] for key in ("start", "end") if value.get(key) is not None}
                content = next((value[key] for key in (kind, *_PATH_KEYS) if value.get(key) is not None), None)
            value = content
        if isinstance(value, dict):  # as in {"image_url": {"url": ...}}
            value = value.get("url")
        if isinstance(value, list) and len(value) == 1:
            [value] = value
        if isinstance(value, str) and is_data_url(value):
            value = data_url_bytes(value, f"{column!r} entry")
        if isinstance(value, bytes):
            return kept_inline(value, kind, self.media_root, f"{column!r} entry")
        if isinstance(value, list):
            raise LineError("media entries", f"{what} is a list of frames; name one file, such as the video itself")
        if not isinstance(value, str) or not value.strip():
            raise LineError("media entries", f"{what} must be a path or {{bytes, path}}; correct it")
        path = self._below_root(value.strip(), what)
        return {"path": path, **span} if span else path

    def _below_root(self, text: str, what: str) -> str:
        """A path below the media root; of an absolute path, the longest end that exists below it."""
        if re.match(r"(?i)(https?|ftp|s3|hf|gs)://", text):
            raise LineError("media entries", f"{what} is an address; download the file, and give its path")
        path = re.sub(r"(?i)^file:(//(localhost)?(?=/))?", "", text)
        if not path.startswith("/"):
            return path
        for root in self.roots:
            if path.startswith(root) and self._holds(path[len(root) :]):
                self.notes[f"paths below {root} are read below media_root"] += 1
                return path[len(root) :]
        parts = PurePosixPath(path).parts[1:]
        for start in range(max(0, len(parts) - _ROOT_TRIED), len(parts)):
            end = "/".join(parts[start:])
            if ".." not in parts and self._holds(end):
                root = path[: len(path) - len(end)] if path.endswith(end) else "/"
                self.roots[root] = None
                self.notes[f"paths below {root} are read below media_root"] += 1
                return end
        raise LineError(
            "missing file",
            f"{what} is an absolute path, and no end of it exists below media_root {self.media_root}; "
            "set media_root to the folder of the media",
        )

    def _holds(self, path: str) -> bool:
        try:
            return (self.media_root / path).is_file()
        except OSError:  # a name that no file can have
            return False

    def entries(self, values: Any, kind: MediaKind, column: str) -> list[Any]:
        """Canonical entries for the value of a column, which may be one medium or a list."""
        if values is None or values == []:
            return []
        return [self.entry(each, kind, column) for each in (values if isinstance(values, list) else [values])]


def media_column(row: Row, kind: MediaKind, names: Sequence[str] = ()) -> tuple[str, Any]:
    """The name and value of the column that holds media of a kind; by default the plural or the singular of the kind.

    Raises:
        LineError: Two columns hold such media.
    """
    names = names or (COLUMN_OF[kind], kind)
    given = [name for name in names if row.get(name) not in (None, "", [])]
    if len(given) > 1:
        raise LineError("media entries", f"both {given[0]!r} and {given[1]!r} are given; keep {given[0]!r}")
    return (given[0], row[given[0]]) if given else (names[0], None)


def assembled(
    row: Row,
    reading: Reading,
    turns: Turns,
    *,
    used: Collection[str],
    solution: str | None,
    media: MediaColumns | None = None,
    more: Mapping[str, Any] | None = None,
) -> Row:
    """A canonical row.

    Args:
        row: The published row; columns that are not `used` are kept.
        reading: The reading.
        turns: The turns.
        used: Columns that the turns and the solution come from.
        solution: The right answer.
        media: Name and value of the column of each kind; None for the usual names.
        more: Further canonical columns.

    Raises:
        LineError: The media do not fit the tags, or an entry names no medium.
        DataError: A medium in the row cannot be written to a file.
    """
    columns = {kind: media_column(row, kind) for kind in COLUMN_OF} if media is None else media
    found: dict[MediaKind, tuple[str, list[Any]]] = {}
    for kind in COLUMN_OF:
        column, values = columns.get(kind, (COLUMN_OF[kind], None))
        own = turns.media.get(kind, ())
        if own and values not in (None, []):
            reason = f"media stand in the parts of {turns.column!r} and in {column!r} too; keep one of both"
            raise LineError("media entries", reason)
        if own:
            found[kind] = turns.column, [reading.entry(each, kind, turns.column) for each in own]
        else:
            found[kind] = column, reading.entries(values, kind, column)
    messages = _tagged(turns, found, reading)
    made = {
        "id": row.get("id"),
        "messages": messages,
        **{COLUMN_OF[kind]: entries for kind, (_, entries) in found.items() if entries},
        "solution": solution,
        **(more or {}),
    }
    done = {"id", *used, *(column for column, _ in found.values()), *made}
    return {**_others(row, done, reading), **{key: value for key, value in made.items() if value is not None}}


def _tagged(turns: Turns, found: Mapping[MediaKind, tuple[str, list[Any]]], reading: Reading) -> list[dict[str, str]]:
    """The turns, with the tags of media that have none at the start of the first user turn."""
    messages = [dict(turn) for turn in turns.messages]
    tags = Counter(tag for turn in messages for tag in media_tags(turn["content"]))
    missing = ""
    for kind, (column, entries) in found.items():
        if entries and not tags[kind]:
            missing += f"<{kind}>" * len(entries)
            reading.notes[f"{column!r} had no <{kind}> tags: put at the start of the first user turn"] += 1
        elif tags[kind] != len(entries):
            raise LineError(
                "media tags",
                f"{tags[kind]} <{kind}> tags in {turns.column!r} but {len(entries)} entries in {column!r}; there must "
                "be one entry per tag, or no tag at all",
            )
    if missing:
        first = next((turn for turn in messages if turn["role"] == "user"), None)
        if first is None:
            raise LineError("messages", f"{turns.column!r} has no user turn, in which media could stand; add one")
        first["content"] = missing + first["content"]
    return messages


def _others(row: Row, done: Collection[str], reading: Reading) -> Row:
    """The other columns; one that holds bytes, or whose name means something else in a canonical row, is left out."""
    kept = {}
    for key, value in row.items():
        if key in done or value is None:
            continue
        if key in _OWN:
            if value not in ("", [], {}):
                reading.notes[f"column {quoted(key)} is not read, and its name has another meaning: left out"] += 1
        elif holds_bytes(value):
            reading.notes[f"column {quoted(key)} holds bytes: left out"] += 1
        else:
            kept[key] = value
    return kept


def holds_bytes(value: Any) -> bool:
    """Whether a value is bytes, or holds some at any depth."""
    if isinstance(value, dict):
        return any(holds_bytes(each) for each in value.values())
    return isinstance(value, bytes) or (isinstance(value, list) and any(holds_bytes(each) for each in value))


def text_of(row: Row, column: str, *, required: bool = True) -> str | None:
    """The text of a column; a number is written as text.

    Raises:
        LineError: The column is missing, blank although it is required, or holds no text.
    """
    value = row.get(column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        if required:
            raise LineError("missing column", f"{column!r} is missing or blank; fill it in or drop the row")
        return None
    if not isinstance(value, str):
        raise LineError("column type", f"{column!r} is {quoted(value)}; it must be text")
    return value


def gold(text: str | None, column: str, reading: Reading) -> str | None:
    """A solution without `<answer>` tags or dollar signs around it.

    >>> reading = Reading(media_root=Path())
    >>> gold("<answer> 12 cm </answer>", "answer", reading), gold("$3$", "answer", reading)
    ('12 cm', '3')
    """
    if text is None:
        return None
    bare = text.strip()
    if (found := _ANSWER.fullmatch(bare)) is not None:
        bare = found[1].strip()
        reading.notes[f"<answer> tags around {column!r} are left out"] += 1
    if len(bare) > 2 and bare[0] == bare[-1] == "$" and "$" not in bare[1:-1]:
        bare = bare[1:-1].strip()
        reading.notes[f"dollar signs around {column!r} are left out"] += 1
    return bare


def last_answer(turns: Turns) -> str | None:
    """The content of the one pair of `<answer>` tags in a last assistant turn; None without it."""
    last = turns.messages[-1]
    found = _ANSWER.findall(last["content"]) if last["role"] == "assistant" else []
    return found[0].strip() if len(found) == 1 else None
