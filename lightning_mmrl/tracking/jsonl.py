"""Files of one JSON object per line that survive a process killed in the middle of a line."""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


def as_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """One line of JSON for each record."""
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)


def append_lines(path: Path, records: Iterable[Mapping[str, Any]], *, durable: bool = False) -> None:
    """Appends one line for each record, in one write.

    A line that a killed process left unfinished is closed first, so that the new ones stay readable. With `durable` the
    data are on the disk when the call returns.

    Raises:
        OSError: The disk refuses; the file is as it was before, where it can be cut.
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
            with suppress(OSError):  # else the next call closes the line that is cut off
                file.truncate(size)
            raise
        if durable:
            os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a file, or none if there is no file; an unreadable line is skipped with a warning."""
    return [record for _, record in numbered_lines(path)]


def numbered_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a file with the numbers of their lines, from 1; see `read_lines`."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            _log.warning("%s, line %d was cut off by a crash and is skipped.", path, number)
            continue
        if isinstance(record, dict):
            yield number, record
        else:
            _log.warning("%s, line %d is damaged and is skipped.", path, number)
