"""ms-swift: JSON lines of `messages`, `conversations`, `query` or `instruction`, beside media and solution.

Unlike in a canonical manifest, media may stand without tags, and paths may be absolute.
"""

from lightning_mmrl.data.formats.assembly import Reading, Turns, assembled, gold, last_answer, text_of
from lightning_mmrl.data.formats.chat import chat_turns, first_turn, keys_of, with_system
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.readers.protocol import ColumnReader
from lightning_mmrl.data.formats.storage import Peek
from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.schema import COLUMN_OF, LineError
from lightning_mmrl.prompts.template import media_tags

_MARKS = ("rejected_response", "rejected_messages", "objects", "tools", "channel", "chat_template_kwargs")
_TURNS = ("messages", "conversations", "query", "instruction")


def is_only_swift(row: Row) -> bool:
    """Whether ms-swift reads a row that a canonical manifest must not have: its own columns, or media without tags."""
    turns = row.get("messages") or row.get("conversations") or row.get("query")
    text = repr(turns) if isinstance(turns, list) else str(turns)
    for kind, column in COLUMN_OF.items():
        media = row.get(column) or row.get(kind)
        entries = media if isinstance(media, list) else [media] if media else []
        if entries and kind not in media_tags(text):
            return True
        paths = [each.get("path") or "/" if isinstance(each, dict) else each for each in entries]
        if any(str(path).startswith(("/", "file:")) for path in paths):
            return True
    return any(mark in row for mark in _MARKS)


def layout_turns(row: Row) -> Turns:
    """The turns of a row in one of the four layouts of ms-swift.

    Raises:
        LineError: The row has none of the layouts or several, or a turn is malformed.
    """
    given = [column for column in _TURNS if row.get(column) not in (None, "", [])]
    if len(given) != 1:
        found = ", ".join(map(quoted, given)) or f"none of {', '.join(_TURNS)}"
        raise LineError("messages", f"the row has {found}; it must have one layout of turns")
    column = given[0]
    if column in ("messages", "conversations"):
        return with_system(chat_turns(row[column], column, keys_of(row, column)), row)
    names = ("query", "", "response") if column == "query" else ("instruction", "input", "output")
    return with_system(asked_turns(row, *names), row)


def asked_turns(row: Row, asked: str, more: str, response: str, history: str = "history") -> Turns:
    """The turns of a row with a column each for question and answer, and pairs of earlier ones.

    Args:
        row: The row.
        asked: Column of the question.
        more: Column with the rest of the question, on a new line; empty for none.
        response: Column of the answer, if there is one.
        history: Column of the earlier pairs.

    Raises:
        LineError: A column is missing or malformed.
    """
    turns: list[dict[str, str]] = []
    earlier = row.get(history) or []
    if not isinstance(earlier, list):
        raise LineError("messages", f"{history!r} is {quoted(earlier)}; it must be a list of pairs")
    for pair in earlier:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) and text for text in pair):
            raise LineError("messages", f"{history!r} entry {quoted(pair)} must be a pair of two texts; correct it")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    texts = [text_of(row, asked), text_of(row, more, required=False) if more else None]
    turns.append({"role": "user", "content": "\n".join(text for text in texts if text)})
    if (answer := text_of(row, response, required=False)) is not None:
        turns.append({"role": "assistant", "content": answer})
    return Turns(column=asked, messages=turns)


def _recognised(peek: Peek) -> bool:
    columns = ("messages", "conversations", "query")
    if peek.storage != "lines" or peek.lacks(*columns) or not peek.lacks("image_urls", "message", "prompt"):
        return False
    if isinstance(first_turn(peek.row).get("content"), list) or (
        "conversations" in peek.row and not peek.lacks("image", "video")
    ):
        return False
    return is_only_swift(peek.row)


def _canonical(row: Row, reading: Reading) -> Row:
    turns = layout_turns(row)
    solution = gold(text_of(row, "solution", required=False), "solution", reading) or last_answer(turns)
    more = {key: row.get(key) for key in ("speaker", "split", "start", "end", "labels")}
    used = {turns.column, "system", "history", "response", "input", "output", "solution"}
    return assembled(row, reading, turns, used=used, solution=solution, more=more)


MS_SWIFT = ColumnReader(
    name="ms_swift",
    layout="JSON lines: messages, conversations, query or instruction; images, videos, audios; solution",
    recognised=_recognised,
    canonical=_canonical,
)
