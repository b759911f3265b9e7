"""Reads what an endpoint sends back: an answer, or the kind of failure, whatever the bytes are."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

PASSING = frozenset({408, 409, 425, 429})
"""Statuses below 500 after which the same request may succeed."""
OF_ALL = frozenset({401, 403, 404, 405})
"""Statuses that every request would get: the key, the address or the model is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer; `is_cut` says whether a length limit ended it.

    `num_prompt_tokens` and `num_tokens` are None if the endpoint does not count tokens.
    """

    text: str
    is_cut: bool
    num_prompt_tokens: int | None
    num_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request without an answer.

    Attributes:
        problem: The kind of failure, in one word.
        again: Whether the same request may succeed later.
        of_all: Whether every other request would fail as well.
        wait_s: Seconds that the endpoint asks to wait; None if it says nothing.
        detail: What the endpoint said, shortened.
    """

    problem: str
    again: bool
    of_all: bool = False
    wait_s: float | None = None
    detail: str = ""


def read_reply(status: int, headers: Mapping[str, str], content: bytes, *, thoughts: bool = False) -> Reply | Failure:
    """Reads a response.

    Args:
        status: The HTTP status.
        headers: The HTTP headers.
        content: The body, as far as it was read.
        thoughts: Whether thoughts that are sent apart from the answer are put before it.

    >>> body = b'{"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}]}'
    >>> read_reply(200, {}, body).text, read_reply(200, {}, body[:-9]).problem, read_reply(500, {}, body).problem
    ('4', 'malformed', 'status_500')
    """
    if status != 200:
        wait = _seconds(next((value for key, value in headers.items() if key.lower() == "retry-after"), ""))
        again = status >= 500 or status in PASSING
        detail = content[:300].decode("utf-8", "replace")
        return Failure(
            problem=f"status_{status}",
            again=again,
            of_all=status in OF_ALL,
            wait_s=wait if again else None,
            detail=detail,
        )
    malformed = Failure(problem="malformed", again=True, detail=content[:300].decode("utf-8", "replace"))
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text, usage = message["content"], body.get("usage")
        if thoughts:
            thought = message.get("reasoning_content") or message.get("reasoning")
            text = f"<think>{thought}</think>{text}" if isinstance(thought, str) and isinstance(text, str) else text
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        return malformed
    if not isinstance(text, str) or not _is_text(text):
        return malformed
    if not text.strip():
        return Failure(problem="empty", again=True)
    counts = usage if isinstance(usage, Mapping) else {}
    return Reply(
        text=text,
        is_cut=reason == "length",
        num_prompt_tokens=_count(counts.get("prompt_tokens")),
        num_tokens=_count(counts.get("completion_tokens")),
    )


def _is_text(text: str) -> bool:
    """Whether a text can be written: JSON may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**40 else None


def _seconds(text: str) -> float | None:
    """Reads Retry-After: seconds, or a date."""
    try:
        found = float(text)
    except ValueError:
        try:
            found = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(found, 0.0) if math.isfinite(found) else None
