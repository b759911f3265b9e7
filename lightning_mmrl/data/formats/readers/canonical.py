"""The canonical manifest: strict JSON lines, see `schema`."""

from lightning_mmrl.data.formats.assembly import Reading
from lightning_mmrl.data.formats.chat import first_turn
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.readers.ms_swift import is_only_swift
from lightning_mmrl.data.formats.readers.protocol import ColumnReader
from lightning_mmrl.data.formats.storage import Peek
from lightning_mmrl.data.formats.turns import LAYOUTS


def _recognised(peek: Peek) -> bool:
    if peek.storage != "lines" or peek.lacks(*LAYOUTS):
        return False
    first = first_turn(peek.row)
    has_parts = isinstance(first.get("content"), list) or ("conversations" in peek.row and "role" in first)
    return not has_parts and peek.lacks("image_urls", "prompt", "message") and not is_only_swift(peek.row)


def _canonical(row: Row, reading: Reading) -> Row:
    return row


CANONICAL = ColumnReader(
    name="canonical",
    layout="JSON lines: messages with a tag for each medium; images, videos, audios; solution",
    recognised=_recognised,
    canonical=_canonical,
)
