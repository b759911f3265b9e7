"""The manifest format: one JSON object per line, in the layout of ms-swift with our extra columns.

    {"id": "clip-1", "messages": [{"role": "user", "content": "<video><audio>Which emotion?"}],
     "videos": ["clips/1.mp4"], "audios": ["clips/1.mp4"], "solution": "angry", "speaker": "s01", "split": "train"}

Media paths are relative to the dataset's `media_root`. Every error names the file, the line, the value and the fix.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast, get_args

from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.template import media_tags
from lightning_mmrl.types.records import MediaKind, MediaRef, Message, Role, Sample

MEDIA_COLUMNS: Mapping[str, MediaKind] = {"images": "image", "videos": "video", "audios": "audio"}
_KNOWN = {"id", "messages", "solution", "speaker", "split", *MEDIA_COLUMNS}


def read_manifest(path: Path, media_root: Path) -> list[Sample]:
    """All samples of a manifest, in order.

    Raises:
        DataError: The file is missing or empty, a line does not parse, an id repeats, or a medium is missing or outside
            `media_root`.
    """
    if not path.is_file():
        raise DataError(f"manifest {path} does not exist; check data.root and the split's file name")
    samples: list[Sample] = []
    seen: dict[str, int] = {}
    with path.open("rb") as lines:
        for number, encoded in enumerate(lines, start=1):
            place = f"{path} line {number}"
            line = _utf8(encoded, place)
            if not line.strip():
                continue
            sample = parse_line(line, place, default_id=f"{path.stem}-{number:06d}")
            if sample.id in seen:
                raise DataError(f"{place}: id {sample.id!r} was used on line {seen[sample.id]}; make ids unique")
            seen[sample.id] = number
            for ref in sample.media:
                resolve_media(ref.path, media_root, place)
            samples.append(sample)
    if not samples:
        raise DataError(f"manifest {path} holds no samples; add at least one line or choose another split")
    return samples


def parse_line(line: str, place: str, default_id: str) -> Sample:
    """One sample; `place` is how errors name the line.

    Raises:
        DataError: The line is not a JSON object of the documented form.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON ({error}); fix or remove the line") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: found a {type(row).__name__}; each line must be one JSON object")
    messages = _messages(row, place)
    return Sample(
        id=_text(row, "id", place) or default_id,
        messages=messages,
        media=_media(row, messages, place),
        solution=_text(row, "solution", place),
        speaker=_text(row, "speaker", place),
        split=_text(row, "split", place),
        extras={key: value for key, value in row.items() if key not in _KNOWN},
    )


def resolve_media(path: str, media_root: Path, place: str) -> Path:
    """The real file behind a manifest path.

    Raises:
        DataError: The path is absolute, has a scheme or `..`, leads out of `media_root` through a link, or is no file.
    """
    pure = PurePosixPath(path)
    if not path or "\0" in path or "://" in path or pure.is_absolute() or ".." in pure.parts or path.startswith("~"):
        raise DataError(
            f"{place}: media path {path!r} must be relative to media_root {media_root}, without '..', '~' or a scheme"
        )
    try:
        real = (media_root / path).resolve()
        inside, exists = real.is_relative_to(media_root.resolve()), real.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a lone surrogate, a loop of links
        raise DataError(f"{place}: media path {path!r} is no file name ({error}); rename the file") from error
    if not inside:
        raise DataError(f"{place}: media path {path!r} leads out of media_root {media_root}; copy the file below it")
    if not exists:
        raise DataError(f"{place}: media file {media_root / path} does not exist; add it or remove the line")
    return real


def _utf8(encoded: bytes, place: str) -> str:
    try:
        return encoded.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 text ({error}); save the manifest as UTF-8") from error


def _messages(row: Mapping[str, Any], place: str) -> tuple[Message, ...]:
    turns = row.get("messages")
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{place}: 'messages' is {turns!r}; it must be a non-empty list of {{role, content}} objects")
    messages = []
    for turn in turns:
        role = turn.get("role") if isinstance(turn, dict) else None
        content = turn.get("content") if isinstance(turn, dict) else None
        if role not in get_args(Role) or not isinstance(content, str):
            raise DataError(
                f"{place}: message {turn!r} needs a role of {', '.join(get_args(Role))} and a string content"
            )
        messages.append(Message(role=cast(Role, role), content=content))
    return tuple(messages)


def _media(row: Mapping[str, Any], messages: tuple[Message, ...], place: str) -> tuple[MediaRef, ...]:
    queues = {kind: _references(row, column, kind, place) for column, kind in MEDIA_COLUMNS.items()}
    tags = [kind for message in messages for kind in media_tags(message.content)]
    for column, kind in MEDIA_COLUMNS.items():
        if tags.count(kind) != len(queues[kind]):
            raise DataError(
                f"{place}: {tags.count(kind)} <{kind}> tags in the messages but {len(queues[kind])} entries in "
                f"'{column}'; there must be one entry per tag"
            )
    pending = {kind: iter(refs) for kind, refs in queues.items()}
    return tuple(next(pending[kind]) for kind in tags)


def _references(row: Mapping[str, Any], column: str, kind: MediaKind, place: str) -> list[MediaRef]:
    entries = row.get(column) or []
    entries = [entries] if isinstance(entries, str | dict) else entries
    if not isinstance(entries, list):
        raise DataError(f"{place}: {column!r} is {entries!r}; it must be a list of paths")
    refs = []
    for entry in entries:
        span = entry if isinstance(entry, dict) else {"path": entry}
        if not isinstance(span.get("path"), str):
            raise DataError(f"{place}: {column!r} entry {entry!r} must be a path or {{path, start, end}}")
        start, end = (_seconds(span, key, place) for key in ("start", "end"))
        if end is not None and end <= (start or 0.0):
            raise DataError(f"{place}: {column!r} entry {entry!r} ends before it starts; 'end' must be after 'start'")
        refs.append(MediaRef(kind=kind, path=span["path"], start_s=start, end_s=end))
    return refs


def _seconds(span: Mapping[str, Any], key: str, place: str) -> float | None:
    value = span.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise DataError(f"{place}: {key!r} is {value!r}; it must be a time in seconds, at least 0")
    return float(value)


def _text(row: Mapping[str, Any], key: str, place: str) -> str | None:
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{place}: {key!r} is {value!r}; it must be a string")
