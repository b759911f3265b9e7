"""Reads the turns of published rows, whose content may be a text with tags or a list of parts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_mmrl.data.formats.assembly import Turns
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.turns import CONVERSATION_ROLES, quoted
from lightning_mmrl.data.schema import COLUMN_OF, LineError
from lightning_mmrl.types.records import MediaKind, Role

_PART_KINDS: Mapping[str, MediaKind] = {
    **{kind: kind for kind in COLUMN_OF},
    **{f"{kind}_url": kind for kind in COLUMN_OF},
    "input_audio": "audio",
}
ROLE_CONTENT = ("role", "content")
FROM_VALUE = ("from", "value")


def chat_turns(
    value: Any,
    column: str,
    keys: tuple[str, str] = ROLE_CONTENT,
    roles: Mapping[str, Role] = CONVERSATION_ROLES,
) -> Turns:
    """The turns of a list of messages, or of a text that is a single question.

    Args:
        value: The value of the column.
        column: Its name.
        keys: The names of the role and of the content in each turn.
        roles: The role of each word that stands for one.

    Raises:
        LineError: A turn has no known role, or content of another kind.
    """
    if isinstance(value, str):
        value = [{keys[0]: next(word for word, role in roles.items() if role == "user"), keys[1]: value}]
    if not isinstance(value, list) or not value:
        what = f"{column!r} is {quoted(value)}"
        raise LineError("messages", f"{what}; it must be a list of {{{keys[0]}, {keys[1]}}} objects")
    messages: list[dict[str, str]] = []
    media: dict[MediaKind, list[Any]] = {}
    for turn in value:
        name = turn.get(keys[0]) if isinstance(turn, dict) else None
        if not isinstance(name, str) or name not in roles:
            known = ", ".join(roles)
            raise LineError("messages", f"{column!r} turn {quoted(turn)} needs a {keys[0]!r} of {known}; correct it")
        content = turn.get(keys[1])
        if isinstance(content, list):
            content = _text_of_parts(content, column, media)
        if not isinstance(content, str):
            reason = f"{column!r} turn {quoted(turn)} needs text or a list of parts in {keys[1]!r}; correct it"
            raise LineError("messages", reason)
        messages.append({"role": roles[name], "content": content})
    _check(messages, column)
    return Turns(column=column, messages=messages, media=media)


def _text_of_parts(parts: Sequence[Any], column: str, media: dict[MediaKind, list[Any]]) -> str:
    """The text of a list of parts, with a tag for each medium; media that parts hold are appended to `media`."""
    texts = []
    for part in parts:
        name = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str):
            texts.append(part)
        elif name == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(name, str) and name in _PART_KINDS:
            kind = _PART_KINDS[name]
            texts.append(f"<{kind}>")
            held = [part[key] for key in (name, kind, "bytes", "path", "url") if part.get(key) not in (None, {}, "")]
            media.setdefault(kind, []).extend(held[:1])
        else:
            known = ", ".join(("text", *_PART_KINDS))
            raise LineError("messages", f"{column!r} part {quoted(part)} needs a 'type' of {known}; correct it")
    return "".join(texts)


def _check(messages: Sequence[Mapping[str, str]], column: str) -> None:
    """Refuses turns that a chat template would accept or drop silently."""
    for number, turn in enumerate(messages, start=1):
        if turn["role"] == "system" and number > 1:
            reason = f"{column!r} turn {number} is a system turn, but only the first may be; move or merge its text"
            raise LineError("messages", reason)
        if turn["role"] != "system" and not turn["content"].strip():
            reason = f"{column!r} turn {number}, the {turn['role']}'s, is blank; write its text or leave it out"
            raise LineError("messages", reason)


def first_turn(row: Row) -> Mapping[str, Any]:
    """The first turn of `messages` or `conversations`; an empty one if the row has none that is an object."""
    turns = row.get("messages", row.get("conversations"))
    first = turns[0] if isinstance(turns, list) and turns else None
    return first if isinstance(first, dict) else {}


def keys_of(row: Row, column: str) -> tuple[str, str]:
    """The names of role and content in the turns of a column; the column's usual names if the turns have neither."""
    first = first_turn({"messages": row.get(column)})
    usual = ROLE_CONTENT if column == "messages" else FROM_VALUE
    return next((keys for keys in (FROM_VALUE, ROLE_CONTENT) if keys[0] in first), usual)


def question(text: str, column: str) -> Turns:
    """One user turn."""
    return Turns(column=column, messages=[{"role": "user", "content": text}])


def with_system(turns: Turns, row: Row, column: str = "system") -> Turns:
    """The turns, with the text of a column as system turn.

    Raises:
        LineError: The column holds no text, or another text than the system turn.
    """
    text = row.get(column)
    if text is None or text == "":
        return turns
    if not isinstance(text, str):
        raise LineError("column type", f"{column!r} is {quoted(text)}; it must be text")
    first = turns.messages[0]
    if first["role"] != "system":
        messages = [{"role": "system", "content": text}, *turns.messages]
        return Turns(column=turns.column, messages=messages, media=turns.media)
    if first["content"].strip() != text.strip():
        what = f"{column!r} is {quoted(text)}, but the system turn of {turns.column!r} is {quoted(first['content'])}"
        raise LineError("messages", f"{what}; keep one of them")
    return turns


def decoded(value: Any, column: str) -> Any:
    """The value that a column holds as JSON text; any other value as it is.

    Raises:
        LineError: The text is no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
        if "\\ud" in value.lower():  # a lone surrogate can neither be tokenized nor written to a file
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except (ValueError, RecursionError) as error:
        reason = f"{column!r} is {quoted(value)}, which is no JSON ({str(error)[:80]}); write a list of turns"
        raise LineError("messages", reason) from error
