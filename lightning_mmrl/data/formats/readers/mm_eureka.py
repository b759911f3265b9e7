"""MM-Eureka: lines of `conversations` and `image_urls`, or of an `id` and a `message` that holds turns as text."""

from lightning_mmrl.data.formats.assembly import MediaColumns, Reading, assembled, gold, text_of
from lightning_mmrl.data.formats.chat import chat_turns, decoded, first_turn
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.readers.protocol import ColumnReader
from lightning_mmrl.data.formats.storage import Peek


def message_row(row: Row, reading: Reading) -> Row:
    """The canonical row of one with turns as text in `message`; the parts of their content give tags and media."""
    turns = chat_turns(decoded(text_of(row, "message"), "message"), "message")
    solution = gold(text_of(row, "answer", required=False), "answer", reading)
    return assembled(row, reading, turns, used={"message", "answer"}, solution=solution)


def _recognised(peek: Peek) -> bool:
    turns = peek.row.get("conversations")
    has_roles = "role" in first_turn({"conversations": turns}) or isinstance(turns, str)
    return (has_roles and "answer" in peek.row) or (isinstance(peek.row.get("message"), str) and "id" in peek.row)


def _canonical(row: Row, reading: Reading) -> Row:
    if row.get("conversations") is None:
        return message_row(row, reading)
    turns = chat_turns(decoded(row["conversations"], "conversations"), "conversations")
    solution = gold(text_of(row, "answer", required=False), "answer", reading)
    media: MediaColumns = {"image": ("image_urls", row.get("image_urls"))}
    return assembled(row, reading, turns, used={"conversations", "answer"}, solution=solution, media=media)


MM_EUREKA = ColumnReader(
    name="mm_eureka",
    layout="JSON lines: id, conversations (role, content) and image_urls, or message (turns as text); answer",
    recognised=_recognised,
    canonical=_canonical,
)
