"""Reads the turns of a manifest line, in the layout `messages` or in one of the other layouts of ms-swift."""

import reprlib
from collections.abc import Mapping
from typing import Any, cast, get_args

from lightning_mmrl.errors import DataError
from lightning_mmrl.types.records import Message, Role

CONVERSATION_ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}

LAYOUTS: Mapping[str, frozenset[str]] = {
    "messages": frozenset({"messages", "system"}),
    "conversations": frozenset({"conversations", "system"}),
    "query": frozenset({"query", "response", "history", "system"}),
}
"""Columns of each layout, by the column that identifies it; columns of other layouts must be empty."""

TURN_COLUMNS = frozenset[str]().union(*LAYOUTS.values())
_OTHERS = {layout: sorted(TURN_COLUMNS - columns) for layout, columns in LAYOUTS.items()}

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_SHORT.maxlevel = 3


def quoted(value: object) -> str:
    """Returns a value as text for an error message, shortened if it is long.

    >>> quoted("angry"), len(quoted("x" * 10_000)) <= 100
    ("'angry'", True)
    """
    # A lone surrogate could not be printed.
    return _SHORT.repr(value).encode("utf-8", "backslashreplace").decode()


def read_turns(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], frozenset[str]]:
    """The messages of a line, and the columns that belong to turns.

    Raises:
        DataError: The line has no layout or several, a turn is malformed or blank, or a system turn is not the first
            one or differs from the column `system`.
    """
    layout = next((column for column in LAYOUTS if row.get(column) is not None), None)
    if layout is None:
        found = ", ".join(quoted(key) for key in list(row)[:8]) or "nothing"
        raise DataError(
            f"'messages' is missing (found {found}); give a list of {{role, content}} objects, "
            "or 'query' and 'response'"
        )
    others = [column for column in _OTHERS[layout] if column in row and _is_given(row, column)]
    if others:
        beside = ", ".join(map(quoted, others))
        raise DataError(
            f"{layout!r} stands beside {beside}, another layout of the turns; keep one layout, or rename what is "
            "meant for rewards"
        )
    read = {"messages": _messages, "conversations": _conversations, "query": _query}[layout]
    turns = _with_system(row, layout, read(row))
    # A chat template would accept or drop a late system turn or a blank turn silently.
    for number, turn in enumerate(turns, start=1):
        if turn.role == "system" and number > 1:
            raise DataError(f"turn {number} is a system turn, but only the first may be; move or merge its text")
        if turn.role != "system" and not turn.content.strip():
            raise DataError(f"turn {number}, the {turn.role}'s, is blank; write its text or leave the turn out")
    return turns, TURN_COLUMNS


def _is_given(row: Mapping[str, Any], column: str) -> bool:
    """Whether a column holds a value; tables write null or an empty value where a row has none."""
    value = row.get(column)
    return bool(value.strip()) if isinstance(value, str) else value not in (None, [], {})


def _with_system(row: Mapping[str, Any], layout: str, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """Puts the text of the column `system` first, unless the turns have a system turn already."""
    if not _is_given(row, "system"):
        return turns
    text = _string(row, "system")
    own = next((turn.content for turn in turns if turn.role == "system"), None)
    if own is None:
        return (Message(role="system", content=text), *turns)
    if own.strip() != text.strip():
        raise DataError(
            f"the column 'system' is {quoted(text)}, but the system turn of {layout!r} is {quoted(own)}; "
            "keep one of them"
        )
    return turns


def _messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    turns = row["messages"]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"'messages' is {quoted(turns)}; it must be a non-empty list of {{role, content}} objects")
    messages = []
    for turn in turns:
        role = turn.get("role") if isinstance(turn, dict) else None
        content = turn.get("content") if isinstance(turn, dict) else None
        if isinstance(content, list):
            raise DataError(
                f"message {quoted(turn)} has a list as content; write text with a <video>, <audio> or <image> tag "
                "where a medium goes, and its path in 'videos', 'audios' or 'images'"
            )
        if role not in get_args(Role) or not isinstance(content, str):
            raise DataError(
                f"message {quoted(turn)} needs a role of {', '.join(get_args(Role))} and a string content; correct it"
            )
        messages.append(Message(role=cast(Role, role), content=content))
    return tuple(messages)


def _conversations(row: Mapping[str, Any]) -> tuple[Message, ...]:
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"'conversations' is {quoted(turns)}; it must be a non-empty list of {{from, value}} objects")
    messages = []
    for turn in turns:
        speaker = turn.get("from") if isinstance(turn, dict) else None
        value = turn.get("value") if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or speaker not in CONVERSATION_ROLES or not isinstance(value, str):
            known = ", ".join(CONVERSATION_ROLES)
            raise DataError(f"turn {quoted(turn)} needs a 'from' of {known} and a string 'value'; correct it")
        messages.append(Message(role=CONVERSATION_ROLES[speaker], content=value))
    return tuple(messages)


def _query(row: Mapping[str, Any]) -> tuple[Message, ...]:
    turns: list[Message] = []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise DataError(f"'history' is {quoted(history)}; it must be a list of [query, response] pairs")
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise DataError(f"'history' entry {quoted(pair)} must be a pair [query, response] of strings")
        turns += [Message(role="user", content=pair[0]), Message(role="assistant", content=pair[1])]
    turns.append(Message(role="user", content=_string(row, "query")))
    if row.get("response") is not None:
        turns.append(Message(role="assistant", content=_string(row, "response")))
    return tuple(turns)


def _string(row: Mapping[str, Any], key: str) -> str:
    if not isinstance(row[key], str):
        raise DataError(f"{key!r} is {quoted(row[key])}; it must be a string")
    return row[key]
