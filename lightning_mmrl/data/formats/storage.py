"""How the rows of a source lie on the disk: lines or an array of JSON, parquet, arrow, CSV; one file or several."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lightning_mmrl.data.formats.csv_rows import csv_rows
from lightning_mmrl.data.formats.json_rows import array_rows, line_rows
from lightning_mmrl.data.formats.place import Row, RowOrFault
from lightning_mmrl.data.formats.table_rows import arrow_rows, num_table_rows, parquet_rows
from lightning_mmrl.data.schema import LineError
from lightning_mmrl.errors import DataError

Storage = Literal["lines", "array", "info", "parquet", "arrow", "csv"]
"""`info` is a dataset_info.json, which names the files of datasets."""
CHOICE = "#"
"""Separates the path of a source of several parts from the name of one part."""
_READERS = {"lines": line_rows, "array": array_rows, "parquet": parquet_rows, "arrow": arrow_rows, "csv": csv_rows}
_SUFFIXES = (".parquet", ".arrow", ".jsonl")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_MAX_INFO_BYTES = 2**24
_PEEKED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Peek:
    """The beginning of a source, from which readers recognise their format.

    Attributes:
        path: The first file.
        storage: How its rows lie.
        row: The first row that can be read; empty if there is none.
    """

    path: Path
    storage: Storage
    row: Row

    def lacks(self, *columns: str) -> bool:
        """Whether none of these columns has a value."""
        return not any(column in self.row for column in columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The files of a source, in order, and the name of the part that was chosen; empty if there is no choice."""

    files: tuple[Path, ...]
    choice: str = ""


def parts_of(path: Path) -> Parts:
    """The files of a source: a file, a folder of shards, or a part of either, as `folder#train`.

    Raises:
        DataError: There is no such file, the folder has no files of rows, or it has several parts and none is chosen.
    """
    choice = ""
    if not path.exists() and CHOICE in path.name:
        name, choice = path.name.split(CHOICE, 1)
        path = path.with_name(name) if name else path.parent
    if path.is_file():
        return Parts(files=(path,), choice=choice)
    if not path.is_dir():
        raise DataError(f"manifest {path} does not exist; check data.root and the split's file name")
    shards: dict[str, list[Path]] = {}
    for file in sorted(each for each in path.iterdir() if each.suffix in _SUFFIXES and each.is_file()):
        shards.setdefault(_SHARD.sub("", file.stem), []).append(file)
    known = ", ".join(list(shards)[:12])
    if not shards:
        raise DataError(f"{path} has no {', '.join(_SUFFIXES)} files; name a file, or the folder of shards")
    if choice and choice not in shards:
        raise DataError(f"{path} has no part {choice!r}; known are {known}")
    if not choice and len(shards) > 1:
        raise DataError(f"{path} has the parts {known}; choose one, as {path}{CHOICE}{next(iter(shards))}")
    return Parts(files=tuple(shards[choice] if choice else next(iter(shards.values()))), choice=choice)


def storage_of(path: Path) -> Storage:
    """How the rows of a file lie, by its first bytes; only a CSV is known by its name.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the file and its rights") from error
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    if path.suffix.lower() in (".csv", ".tsv"):
        return "csv"
    if path.name == "dataset_info.json":
        return "info"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return "array" if text.startswith(b"[") and path.suffix.lower() != ".jsonl" else "lines"


def stored_rows(path: Path, storage: Storage) -> Iterator[RowOrFault]:
    """Yields the rows of a file, each as a mapping without missing values, or the reason why it cannot be read.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        yield from _READERS[storage](path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check the file and its rights") from error


def rows_of_files(files: Sequence[Path]) -> Iterator[tuple[Path, RowOrFault]]:
    """Yields the rows of several files, each with its file; places name the file if there are several."""
    for path in files:
        for place, row in stored_rows(path, storage_of(path)):
            yield path, (replace(place, file=path.name) if len(files) > 1 else place, row)


def peek(path: Path) -> Peek:
    """The beginning of a file.

    Raises:
        DataError: The file cannot be read.
    """
    storage = storage_of(path)
    if storage == "info":
        return Peek(path=path, storage=storage, row=json_file(path))
    found = (row for _, row in islice(stored_rows(path, storage), _PEEKED) if not isinstance(row, LineError))
    return Peek(path=path, storage=storage, row={k: v for k, v in next(found, {}).items() if v not in (None, "", [])})


def json_file(path: Path) -> dict[str, Any]:
    """The object that a small JSON file holds.

    Raises:
        DataError: The file is too large or holds no object.
    """
    try:
        if path.stat().st_size > _MAX_INFO_BYTES:
            raise DataError(f"{path} is larger than {_MAX_INFO_BYTES} bytes; name the file of the rows")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({str(error)[:200]}); correct the file") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; it must be an object of datasets by name")
    return content


def num_file_rows(path: Path, storage: Storage) -> int:
    """The number of rows of a file, good or bad.

    Raises:
        DataError: The file cannot be read.
    """
    if storage in ("parquet", "arrow"):
        return num_table_rows(path)
    if storage == "lines":
        with path.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    return sum(1 for _ in stored_rows(path, storage))
