"""LLaVA and R1-Omni: an array of `conversations` by human and gpt, beside `image`, `video` or `audio`.

In R1-Omni `<audio>` beside `<video>` is the sound of the video itself, and the last turn of an RL row is a bare label.
"""

from lightning_mmrl.data.formats.assembly import (
    MediaColumns,
    Reading,
    Turns,
    assembled,
    gold,
    last_answer,
    media_column,
    text_of,
)
from lightning_mmrl.data.formats.chat import FROM_VALUE, chat_turns, first_turn, with_system
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.readers.protocol import ColumnReader
from lightning_mmrl.data.formats.storage import Peek
from lightning_mmrl.data.schema import COLUMN_OF
from lightning_mmrl.prompts.template import media_tags

_MAX_LABEL = 100
_NAMED = "vision_r1"


def conversation_row(row: Row, reading: Reading, turns: Turns, media: MediaColumns) -> Row:
    """A canonical row, with the answer of the last turn as the solution if there is no column for it."""
    column = next((name for name in ("solution", "answer") if row.get(name) is not None), None)
    solution = last_answer(turns) if column is None else gold(text_of(row, column), column, reading)
    last = turns.messages[-1]
    text = last["content"].strip()
    if solution is None and last["role"] == "assistant" and len(text) <= _MAX_LABEL and "<" not in text:
        solution = text
        reading.notes[f"the short last turn of {turns.column!r} is read as the solution"] += 1
    used = {turns.column, "system", *({column} if column else ())}
    more = {key: row.get(key) for key in ("speaker", "split", "start", "end")}
    return assembled(row, reading, turns, used=used, solution=solution, media=media, more=more)


def _recognised(peek: Peek) -> bool:
    if "from" not in first_turn({"conversations": peek.row.get("conversations")}) or peek.path.name.startswith(_NAMED):
        return False
    singular = not peek.lacks(*COLUMN_OF) or peek.lacks(*COLUMN_OF.values())
    return singular and (peek.storage != "lines" or _shares_sound(peek.row))


def _shares_sound(row: Row) -> bool:
    return bool(row.get("video")) and not row.get("audio") and "<audio>" in repr(row.get("conversations"))


def _canonical(row: Row, reading: Reading) -> Row:
    turns = with_system(chat_turns(row.get("conversations"), "conversations", FROM_VALUE), row)
    media: MediaColumns = {kind: media_column(row, kind) for kind in COLUMN_OF}
    asks_sound = any("audio" in media_tags(turn["content"]) for turn in turns.messages)
    if asks_sound and media["audio"][1] is None and media["video"][1] is not None:
        media["audio"] = media["video"]
        reading.notes["<audio> is the sound of the video itself"] += 1
    return conversation_row(row, reading, turns, media)


LLAVA = ColumnReader(
    name="llava",
    layout="array: conversations (from, value); image, video or audio; as LLaVA and R1-Omni publish",
    recognised=_recognised,
    canonical=_canonical,
)
