"""Vision-R1-cold: arrays named vision_r1_*, with `image` and human/gpt turns, or `images` and user/assistant turns."""

from lightning_mmrl.data.formats.assembly import Reading, media_column
from lightning_mmrl.data.formats.chat import chat_turns, keys_of
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.readers.llava import conversation_row
from lightning_mmrl.data.formats.readers.protocol import ColumnReader
from lightning_mmrl.data.formats.storage import Peek
from lightning_mmrl.data.schema import COLUMN_OF


def _recognised(peek: Peek) -> bool:
    is_named = peek.path.name.lower().startswith("vision_r1")
    return is_named and peek.storage in ("array", "lines") and not peek.lacks("conversations", "messages")


def _canonical(row: Row, reading: Reading) -> Row:
    column = "messages" if row.get("messages") is not None else "conversations"
    turns = chat_turns(row.get(column), column, keys_of(row, column))
    return conversation_row(row, reading, turns, {kind: media_column(row, kind) for kind in COLUMN_OF})


VISION_R1_COLD = ColumnReader(
    name="vision_r1_cold",
    layout="array named vision_r1_*: conversations (from, value) and image, or messages (role, content) and images",
    recognised=_recognised,
    canonical=_canonical,
)
