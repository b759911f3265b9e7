"""The interface of format readers: each recognises its files and turns their rows into canonical rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lightning_mmrl.data.formats.assembly import Reading
from lightning_mmrl.data.formats.place import Row, RowOrFault
from lightning_mmrl.data.formats.storage import Parts, Peek, rows_of_files
from lightning_mmrl.data.schema import LineError


class Reader(Protocol):
    """A format. One file below `readers/` defines it, and one line in `registry.py` makes it known.

    Attributes:
        name: The value of `format`.
        layout: The files and columns, in a few words.
    """

    @property
    def name(self) -> str: ...
    @property
    def layout(self) -> str: ...

    def recognises(self, peek: Peek) -> bool:
        """Whether the beginning of a source has the layout; a second reader that says so makes `auto` refuse."""
        ...

    def files(self, parts: Parts) -> Sequence[Path]:
        """The files that hold the rows.

        Raises:
            DataError: The source names files that do not exist.
        """
        ...

    def rows(self, parts: Parts, reading: Reading) -> Iterator[tuple[Path, RowOrFault]]:
        """Yields each row with its file and place, as a canonical row (see `schema`) or as a fault.

        Raises:
            DataError: A file cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnReader:
    """A reader of a format that differs in its columns alone; it reads the rows of the source's own files.

    Attributes:
        name: See `Reader`.
        layout: See `Reader`.
        recognised: Whether the beginning of a source has the layout.
        canonical: Returns the canonical row of a published row; raises LineError.
    """

    name: str
    layout: str
    recognised: Callable[[Peek], bool]
    canonical: Callable[[Row, Reading], Row]

    def recognises(self, peek: Peek) -> bool:
        return self.recognised(peek)

    def files(self, parts: Parts) -> Sequence[Path]:
        return parts.files

    def rows(self, parts: Parts, reading: Reading) -> Iterator[tuple[Path, RowOrFault]]:
        return converted(rows_of_files(parts.files), self.canonical, reading)


def converted(
    found: Iterator[tuple[Path, RowOrFault]], canonical: Callable[[Row, Reading], Row], reading: Reading
) -> Iterator[tuple[Path, RowOrFault]]:
    """Yields the rows as canonical rows; a row that cannot be converted becomes a fault."""
    for path, (place, row) in found:
        try:
            made = row if isinstance(row, LineError) else canonical(row, reading)
        except LineError as error:
            made = error
        yield path, (place, made)
