"""The place of a row in its file, as messages name it."""

from dataclasses import dataclass
from typing import Any

from lightning_mmrl.data.schema import LineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A row of a file, counted from 1.

    Attributes:
        row: Number of the row; of the line, if rows are lines.
        line: Number of the line on which the row begins; None in a file without lines.
        by_line: Whether the number of the line alone names the row.
        file: Name of the file, if the source has several files; empty otherwise.
    """

    row: int
    line: int | None = None
    by_line: bool = False
    file: str = ""

    @property
    def where(self) -> str:
        """The words for a place; empty for a line of the only file.

        >>> Place(row=3, line=17).where, Place(row=12).where, Place(row=5, line=5, by_line=True).where
        ('row 3 (line 17)', 'row 12', '')
        """
        if self.by_line:
            return self.file and f"{self.file}:{self.row}"
        row = f"row {self.row}" if self.line is None else f"row {self.row} (line {self.line})"
        return f"{self.file}: {row}" if self.file else row


Row = dict[str, Any]
RowOrFault = tuple[Place, Row | LineError]
