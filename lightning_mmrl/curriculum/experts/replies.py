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
OF_ALL = frozenset({401, 402, 403, 404, 405, 407})
"""Statuses that every request would get: the key, the account, the address or the model is wrong."""
CHARACTERS_PER_TOKEN = 4
"""Length of a token, for endpoints that do not count tokens."""
_OWN = {"length": "cut_before_answer", "content_filter": "content_filter"}
"""Reasons for the end of a reply without text that the same request would meet again, and the words for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of a reply that was billed, as the endpoint counts them; None for a number that it does not give."""

    num_prompt_tokens: int | None = None
    num_tokens: int | None = None
    num_total: int | None = None

    def billed(self, asked: int, said: int) -> int:
        """The tokens of prompt and answer; a missing number is estimated from the characters asked and said.

        >>> Usage(num_prompt_tokens=7).billed(asked=100, said=5), Usage(num_total=9).billed(asked=100, said=5)
        (9, 9)
        """
        prompt, answer = self.num_prompt_tokens, self.num_tokens
        if self.num_total is not None:
            return max(self.num_total, (prompt or 0) + (answer or 0))
        prompt = estimate(asked) if prompt is None else prompt
        return prompt + (estimate(said) if answer is None else answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer; `is_cut` says whether a length limit ended it."""

    text: str
    is_cut: bool
    usage: Usage = Usage()

    @property
    def num_tokens(self) -> int:
        """The tokens of the answer, estimated from its length if the endpoint did not count them."""
        return estimate(len(self.text)) if self.usage.num_tokens is None else self.usage.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request without an answer.

    Attributes:
        problem: The kind of failure, in one word.
        again: Whether the same request may succeed later.
        of_all: Whether every other request would fail as well.
        own: Whether it is the outcome of this question alone, which the same request would meet again.
        wait_s: Seconds that the endpoint asks to wait; None if it says nothing.
        detail: What the endpoint said, shortened.
        usage: What it was billed; None if it was not.
        num_characters: Characters that were received, for an estimate of what was billed.
    """

    problem: str
    again: bool
    of_all: bool = False
    own: bool = False
    wait_s: float | None = None
    detail: str = ""
    usage: Usage | None = None
    num_characters: int = 0


def estimate(num_characters: int) -> int:
    """The tokens of a text of this length."""
    return -(-num_characters // CHARACTERS_PER_TOKEN)


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
        return _status(status, headers, content)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return _malformed(content, begun(status, content))
    if not isinstance(body, Mapping):
        return _malformed(content, None)
    usage = _usage(body) if "choices" in body or "usage" in body else None
    try:
        choice = body["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text, thought = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    except (KeyError, IndexError, TypeError, AttributeError):
        return _malformed(content, usage)
    thought = thought if isinstance(thought, str) else ""
    if text is None or (isinstance(text, str) and not text.strip()):
        return _without_text(message, reason, usage, len(thought))
    if not isinstance(text, str) or not _is_text(text + thought):
        return _malformed(content, usage)
    whole = f"<think>{thought}</think>{text}" if thoughts and thought else text
    return Reply(text=whole, is_cut=reason == "length", usage=usage or Usage())


def begun(status: int, content: bytes | bytearray) -> Usage | None:
    """The usage of a reply that is not whole: unknown if it began as an answer does, None if it was no answer."""
    return Usage() if status == 200 and content.lstrip()[:1] in (b"{", b"") else None


def _status(status: int, headers: Mapping[str, str], content: bytes) -> Failure:
    """The failure of a response with another status than 200."""
    wait = _seconds(next((value for key, value in headers.items() if key.lower() == "retry-after"), ""))
    again, of_all = status >= 500 or status in PASSING, status in OF_ALL
    return Failure(
        problem=f"status_{status}",
        again=again,
        of_all=of_all,
        own=400 <= status < 500 and not (again or of_all),
        wait_s=wait if again else None,
        detail=_shortened(content),
    )


def _malformed(content: bytes, usage: Usage | None) -> Failure:
    return Failure(
        problem="malformed", again=True, detail=_shortened(content), usage=usage, num_characters=len(content)
    )


def _without_text(message: Mapping[str, Any], reason: Any, usage: Usage | None, num_thoughts: int) -> Failure:
    """The failure of a reply that has no text: the question's own, if the reply says why."""
    refusal = message.get("refusal")
    declined = "declined" if isinstance(refusal, str) and refusal.strip() else None
    problem = _OWN.get(reason, declined) if isinstance(reason, str) else declined
    return Failure(
        problem=problem or "empty",
        again=problem is None,
        own=problem is not None,
        usage=usage,
        num_characters=num_thoughts,
    )


def _usage(body: Mapping[str, Any]) -> Usage:
    counts = body.get("usage")
    found = counts if isinstance(counts, Mapping) else {}
    prompt, answer, total = (_count(found.get(f"{name}_tokens")) for name in ("prompt", "completion", "total"))
    return Usage(num_prompt_tokens=prompt, num_tokens=answer, num_total=total)


def _shortened(content: bytes) -> str:
    return content[:300].decode("utf-8", "replace")


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
