"""Files of one JSON object per line that survive a process killed in the middle of a line."""

import json
import logging
import os
from collections.abc import Iterable, Mapping
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
    """Returns the records of a file, or none if there is no file; an unfinished line is skipped with a warning."""
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            _log.warning("%s, line %d was cut off by a crash and is skipped.", path, number)
    return records
