"""LLaMA-Factory: a dataset_info.json that names files and their columns, in sharegpt or alpaca formatting.

A data file without its dataset_info.json is read by the default names of the columns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning_mmrl.data.formats.assembly import MediaColumns, Reading, Turns, assembled, gold, last_answer, text_of
from lightning_mmrl.data.formats.chat import FROM_VALUE, chat_turns, first_turn, keys_of, with_system
from lightning_mmrl.data.formats.place import Row, RowOrFault
from lightning_mmrl.data.formats.readers.ms_swift import asked_turns
from lightning_mmrl.data.formats.readers.protocol import converted
from lightning_mmrl.data.formats.storage import CHOICE, Parts, Peek, json_file, rows_of_files, storage_of
from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.schema import COLUMN_OF, LineError
from lightning_mmrl.errors import DataError
from lightning_mmrl.suggestions import did_you_mean
from lightning_mmrl.types.records import Role

_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_ROLE_TAGS: Mapping[str, Role] = {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}
_WORDS = {"user_tag": "human", "assistant_tag": "gpt", "system_tag": "system"}
_ELSEWHERE = ("hf_hub_url", "ms_hub_url", "script_url", "cloud_file_name")
_KNOWN = {"file_name", "formatting", "columns", "tags", "split", "num_samples", "subset", "folder", "ranking"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dataset:
    """One entry of a dataset_info.json: its file, and the names of columns and tags.

    `roles` are the words for the roles in `tags`, whose names for role and content are `keys`.
    """

    file: Path
    alpaca: bool
    columns: Mapping[str, str]
    keys: tuple[str, str]
    roles: Mapping[str, Role]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaFactory:
    """The reader of both formattings."""

    name: str = "llama_factory"
    layout: str = "dataset_info.json (sharegpt or alpaca); array with images, videos, audios; instruction, output"

    def recognises(self, peek: Peek) -> bool:
        if peek.storage == "info":
            return all(isinstance(entry, dict) for entry in peek.row.values())
        is_named = peek.path.name.startswith("vision_r1")
        has_turns = not peek.lacks("messages", "conversations") and peek.lacks("answer", *COLUMN_OF, "image_urls")
        plain = not isinstance(first_turn(peek.row).get("content"), list)
        has_media = not peek.lacks(*COLUMN_OF.values()) or "messages" in peek.row
        sharegpt = peek.storage == "array" and has_turns and has_media and plain and not is_named
        return sharegpt or {"instruction", "output"} <= peek.row.keys()

    def files(self, parts: Parts) -> Sequence[Path]:
        return (_dataset(parts).file,) if storage_of(parts.files[0]) == "info" else parts.files

    def rows(self, parts: Parts, reading: Reading) -> Iterator[tuple[Path, RowOrFault]]:
        info = _dataset(parts) if storage_of(parts.files[0]) == "info" else None
        canonical = _by_default if info is None else partial(_canonical, info)
        return converted(rows_of_files(self.files(parts)), canonical, reading)


def _dataset(parts: Parts) -> _Dataset:
    """The chosen entry of a dataset_info.json."""
    path = parts.files[0]
    entries = json_file(path)
    name = parts.choice or (next(iter(entries)) if len(entries) == 1 else "")
    if not name:
        known = ", ".join(map(str, list(entries)[:12]))
        raise DataError(f"{path} names {len(entries)} datasets ({known}); choose one, as {path}{CHOICE}NAME")
    if name not in entries:
        raise DataError(f"{path} has no dataset {name!r}{did_you_mean(name, entries)}")
    entry, place = entries[name], f"{path}: {name}"
    if not isinstance(entry, dict):
        raise DataError(f"{place} is {quoted(entry)}; it must be an object with 'file_name'")
    if other := next((key for key in _ELSEWHERE if key in entry and "file_name" not in entry), None):
        raise DataError(f"{place} is at {other} {quoted(entry[other])}; download it, and give its 'file_name'")
    if unknown := next((key for key in entry if key not in _KNOWN and key not in _ELSEWHERE), None):
        raise DataError(f"{place} has the key {quoted(unknown)}{did_you_mean(unknown, _KNOWN)}")
    if entry.get("ranking"):
        raise DataError(f"{place} has 'ranking' set: pairs of answers, which no stage reads; choose another dataset")
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt"):
        raise DataError(f"{place} has 'formatting' {quoted(formatting)}; it must be alpaca or sharegpt")
    columns, tags = (_texts(entry, key, place) for key in ("columns", "tags"))
    words = {**_WORDS, **tags}
    return _Dataset(
        file=_file(entry, path, place),
        alpaca=formatting == "alpaca",
        columns=columns,
        keys=(tags.get("role_tag", FROM_VALUE[0]), tags.get("content_tag", FROM_VALUE[1])),
        roles={words[tag]: role for tag, role in _ROLE_TAGS.items()},
    )


def _file(entry: Mapping[str, Any], path: Path, place: str) -> Path:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or name.startswith(("/", "~")) or ".." in Path(name).parts or "\0" in name:
        raise DataError(f"{place} has 'file_name' {quoted(name)}; it must be a path below the folder of {path.name}")
    file = path.parent / name
    if not file.is_file():
        raise DataError(f"{place} names the file {file}, which is no file; add it or correct the name")
    return file


def _texts(entry: Mapping[str, Any], key: str, place: str) -> dict[str, str]:
    found = entry.get(key, {})
    if not isinstance(found, dict) or not all(isinstance(each, str) and len(each) < 100 for each in found.values()):
        raise DataError(f"{place} has {key!r} {quoted(found)}; it must map names to short texts")
    return found


def _by_default(row: Row, reading: Reading) -> Row:
    """The canonical row of one in a file without a dataset_info.json."""
    if row.get("messages") is None and row.get("conversations") is None:
        info = _Dataset(file=Path(), alpaca=True, columns={}, keys=FROM_VALUE, roles={})
    else:
        column = "messages" if row.get("messages") is not None else "conversations"
        keys = keys_of(row, column)
        roles: dict[str, Role] = {_WORDS[tag] if keys == FROM_VALUE else role: role for tag, role in _ROLE_TAGS.items()}
        info = _Dataset(file=Path(), alpaca=False, columns={"messages": column}, keys=keys, roles=roles)
    return _canonical(info, row, reading)


def _canonical(info: _Dataset, row: Row, reading: Reading) -> Row:
    columns = info.columns
    turns: Turns
    if info.alpaca:
        asked, more, response = (columns.get(name, usual) for name, usual in _ALPACA.items())
        history = columns.get("history", "history")
        turns, used = asked_turns(row, asked, more, response, history), {asked, more, response, history}
    else:
        column = columns.get("messages", "conversations")
        turns, used = chat_turns(row.get(column), column, info.keys, info.roles), {column}
    system = columns.get("system", "system")
    if tools := row.get(columns.get("tools", "tools")):
        raise LineError("messages", f"'tools' is {quoted(tools)}; turns of tools are not read: choose other rows")
    media: MediaColumns = {}
    for kind, usual in COLUMN_OF.items():
        column = columns.get(usual, usual)
        media[kind] = column, row.get(column)
    solution = gold(text_of(row, "solution", required=False), "solution", reading) or last_answer(turns)
    return assembled(
        row,
        reading,
        with_system(turns, row, system),
        used={*used, system, "tools", "solution"},
        solution=solution,
        media=media,
    )


LLAMA_FACTORY = LlamaFactory()
