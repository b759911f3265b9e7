"""Reads the objects of a JSON file one at a time: one on each line, or the elements of one array of any length."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from lightning_mmrl.data.formats.lines import json_object
from lightning_mmrl.data.formats.place import Place, Row, RowOrFault
from lightning_mmrl.data.schema import MAX_LINE_BYTES, LineError
from lightning_mmrl.errors import DataError

_CHUNK = 2**20
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|["\[\]{},]', re.DOTALL)
"""A whole string, a quote that no string in the buffer closes, or a sign of structure."""


def line_rows(path: Path) -> Iterator[RowOrFault]:
    """Yields the object of every line that is not blank, or the reason why it is none.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        number = 0
        while encoded := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            is_cut = len(encoded) > MAX_LINE_BYTES
            rest = encoded
            while is_cut and rest and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE_BYTES + 1)
            if encoded.strip():
                yield Place(row=number, line=number, by_line=True), parsed(encoded)


def parsed(encoded: bytes) -> Row | LineError:
    """Parses an object, or returns the reason why that is impossible."""
    if len(encoded) > MAX_LINE_BYTES:
        return LineError("not JSON", f"longer than {MAX_LINE_BYTES} bytes; keep media in files and name their paths")
    try:
        return json_object(encoded.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return LineError("not JSON", f"not UTF-8 text ({error}); save the file as UTF-8")
    except DataError as error:
        return LineError("not JSON", str(error))


def array_rows(path: Path) -> Iterator[RowOrFault]:
    """Yields the elements of the array that a file holds; only one element is in memory at a time.

    An element that is no object is a fault of its row. Damage that hides where elements end is the fault of the row at
    which it is found, and ends the reading.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        yield from _Elements(file.read).rows()


class _Elements:
    """Finds the ends of the elements by their brackets and commas, and parses each element by itself."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._buffer = read(_CHUNK).removeprefix(b"\xef\xbb\xbf")
        self._start = self._buffer.find(b"[") + 1
        self._line = 1 + self._buffer.count(b"\n", 0, self._start)

    def rows(self) -> Iterator[RowOrFault]:
        """Yields the elements."""
        row, end = 0, b","
        while end == b",":
            element, end = self._next()
            content = element.lstrip()
            line = self._line + element.count(b"\n", 0, len(element) - len(content))
            self._line += element.count(b"\n")
            if row == 0 and end == b"]" and not content:
                break
            row += 1
            if end:
                yield Place(row=row, line=line), parsed(content.rstrip())
                continue
            reason = "the array breaks off, or a bracket or quote is missing; restore the file, or end it by ]"
            if len(element) > MAX_LINE_BYTES:
                reason = f"an element is longer than {MAX_LINE_BYTES} bytes; keep media in files, and name their paths"
            yield Place(row=row, line=line), LineError("not JSON", reason)
        if end and (rest := (self._buffer[self._start :] + self._read(_CHUNK)).strip()):
            found = rest[:20].decode("utf-8", "backslashreplace")
            reason = f"the text {found!r} follows the end of the array; keep one array in a file"
            yield Place(row=row + 1, line=self._line), LineError("not JSON", reason)

    def _next(self) -> tuple[bytes, bytes]:
        """The text of the next element, and the sign that ends it: a comma, a bracket, or nothing if none does."""
        position, depth = self._start, 0
        while True:
            unread = len(self._buffer)
            for token in _TOKEN.finditer(self._buffer, position):
                sign = token[0]
                if sign == b'"':
                    unread = token.start()
                    break
                if depth == 0 and sign in (b",", b"]"):
                    element, self._start = self._buffer[self._start : token.start()], token.end()
                    return element, sign
                depth += (sign in (b"[", b"{")) - (sign in (b"]", b"}"))
            self._buffer, position, self._start = self._buffer[self._start :], unread - self._start, 0
            longest = depth >= 0 and len(self._buffer) <= MAX_LINE_BYTES
            more = self._read(max(_CHUNK, len(self._buffer))) if longest else b""
            if not more:
                return self._buffer, b""
            self._buffer += more
