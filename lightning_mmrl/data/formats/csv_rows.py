"""Reads the rows of a CSV as columns and cells."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from lightning_mmrl.data.formats.csv_text import csv_text, delimiter_of
from lightning_mmrl.data.formats.place import Place, RowOrFault
from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.schema import LineError
from lightning_mmrl.errors import DataError


def csv_rows(path: Path) -> Iterator[RowOrFault]:
    """Yields the rows below the header; empty cells are left out, and a place is the line on which the row begins.

    Raises:
        DataError: The file has no text encoding that is known by its first bytes, or the header is faulty.
    """
    text = csv_text(path)
    delimiter, is_declared = delimiter_of(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    begin = 1
    try:
        for number, cells in enumerate(reader):
            line, begin = begin, reader.line_num + 1
            if (number == 0 and is_declared) or not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [name.strip() for name in cells]
                _check_header(path, line, header)
            elif len(cells) != len(header):
                reason = f"{len(cells)} fields but {len(header)} columns; check quotes and delimiters"
                yield Place(row=line, line=line, by_line=True), LineError("not a CSV row", reason)
            else:
                filled = {name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip()}
                yield Place(row=line, line=line, by_line=True), filled
    except csv.Error as error:
        reason = f"not a CSV row ({error}); check its quotes"
        yield Place(row=reader.line_num, line=reader.line_num, by_line=True), LineError("not a CSV row", reason)


def _check_header(path: Path, line: int, header: list[str]) -> None:
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}:{line}: column {quoted(twice)} appears twice; rename one")
