"""Files of one JSON object per line that survive a process killed in the middle of a line."""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_mmrl.errors import ConfigError

_log = logging.getLogger(__name__)


def as_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """One line of JSON for each record."""
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)


def append_lines(path: Path, records: Iterable[Mapping[str, Any]], *, durable: bool = False) -> None:
    """Appends one line for each record, in one write.

    If a killed process left its last line unfinished, a line break is added first, so that the new lines stay readable.
    With `durable` the data are on the disk when the call returns.

    Raises:
        OSError: The disk refuses; the file is truncated to its old length, if the disk allows that.
    """
    text = as_lines(records)
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size > 0:
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else "\n" + text
        rest = memoryview(text.encode())
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):  # else the next call ends the unfinished line
                file.truncate(size)
            raise
        if durable:
            os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a file, or none if there is no file; an unreadable line is skipped with a warning."""
    return [record for _, record in numbered_lines(path)]


def numbered_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number of each line, counted from 1, and its record; skips unreadable lines as `read_lines` does.

    Raises:
        ConfigError: The path is no plain file.
    """
    for number, line, record in _lines(path):
        if record is None:
            _log.warning("%s, line %d was cut off by a crash or is damaged (%.20r); it is skipped.", path, number, line)
        else:
            yield number, record


def unreadable_lines(path: Path) -> list[str]:
    """The lines of a file that `read_lines` skips.

    Raises:
        ConfigError: The path is no plain file.
    """
    return [line for _, line, record in _lines(path) if record is None]


def _lines(path: Path) -> Iterator[tuple[int, str, dict[str, Any] | None]]:
    """Number, text and record of each line; the record is None for an unreadable line."""
    if not path.exists():
        return
    if not path.is_file():
        raise ConfigError(f"{path} is no plain file; move it away")
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            record = None
        yield number, line, record if isinstance(record, dict) else None
