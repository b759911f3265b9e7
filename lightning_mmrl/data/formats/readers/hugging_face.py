"""TRL and Hugging Face datasets: `messages` or `prompt` with content parts, beside `images`, `videos` and `audios`."""

from lightning_mmrl.data.formats.assembly import Reading, Turns, assembled, gold, last_answer, text_of
from lightning_mmrl.data.formats.chat import chat_turns, first_turn, with_system
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.readers.protocol import ColumnReader
from lightning_mmrl.data.formats.storage import Peek
from lightning_mmrl.data.schema import LineError

_GOLD = ("solution", "answer", "ground_truth")
_PAIRS = ("chosen", "rejected")


def _recognised(peek: Peek) -> bool:
    if "reward_model" in peek.row or "message" in peek.row:
        return False
    if peek.storage in ("parquet", "arrow"):
        return not peek.lacks("messages", "prompt")
    has_parts = isinstance(first_turn(peek.row).get("content"), list)
    return peek.storage in ("lines", "array") and (has_parts or "prompt" in peek.row)


def _canonical(row: Row, reading: Reading) -> Row:
    if pair := next((name for name in _PAIRS if row.get(name) is not None), None):
        raise LineError("messages", f"{pair!r} belongs to a pair of answers, which no stage reads; name another file")
    given = [name for name in ("messages", "prompt") if row.get(name) not in (None, "", [])]
    if len(given) != 1:
        found = "both 'messages' and 'prompt'" if given else "neither 'messages' nor 'prompt'"
        raise LineError("messages", f"the row has {found}; it must have one of them")
    column = given[0]
    turns = chat_turns(row[column], column)
    if row.get("completion") not in (None, "", []):
        turns = _completed(turns, row)
    answer = next((name for name in _GOLD if row.get(name) is not None), _GOLD[0])
    solution = gold(text_of(row, answer, required=False), answer, reading) or last_answer(turns)
    used = {column, "completion", "system", answer}
    more = {key: row.get(key) for key in ("speaker", "split", "start", "end")}
    return assembled(row, reading, with_system(turns, row), used=used, solution=solution, more=more)


def _completed(turns: Turns, row: Row) -> Turns:
    """The turns of a prompt and of its completion."""
    value = row["completion"]
    last = chat_turns([{"role": "assistant", "content": value}] if isinstance(value, str) else value, "completion")
    if last.media:
        raise LineError("media entries", "'completion' holds media; an answer is text")
    return Turns(column=turns.column, messages=[*turns.messages, *last.messages], media=turns.media)


HUGGING_FACE = ColumnReader(
    name="hugging_face",
    layout="parquet or arrow: messages or prompt (text, turns or content parts); images, videos, audios; solution",
    recognised=_recognised,
    canonical=_canonical,
)
