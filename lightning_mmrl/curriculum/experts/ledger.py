"""What an endpoint was asked and what it answered, in a file that only grows, so that nothing is asked twice.

Each line is written at once. After a kill only requests that were under way are asked again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lightning_mmrl.curriculum.experts.replies import Reply
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.files import writing
from lightning_mmrl.tracking.jsonl import append_lines, read_lines

CHARACTERS_PER_TOKEN = 4
"""Length of a token, for endpoints that do not count tokens."""


class Ledger:
    """Requests by their hash.

    Args:
        path: The file; it need not exist.

    Attributes:
        num_requests: Requests that were sent, in this process and before.
        num_tokens: Tokens of prompts and answers.

    Raises:
        StageError: A line is no line of a ledger.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_requests = self.num_tokens = 0
        self._answers: dict[str, Reply] = {}
        for record in read_lines(path):
            try:
                self._take(record)
            except (KeyError, TypeError) as error:
                raise StageError(
                    f"{path} holds {str(record)[:80]}, which is no line of an expert's answers; move the file away"
                ) from error

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> "Iterator[Ledger]":
        """Gives the block a ledger that no other process writes.

        Raises:
            ConfigError: Another process writes it.
            DiskError: The disk refuses.
        """
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise ConfigError(
                f"the expert's answers {path} are in use by another process; wait for it, or set another "
                "endpoint.answers"
            ) from error
        try:
            yield cls(path)
        finally:
            lock.release()

    def answer(self, request: str) -> Reply | None:
        """The answer to a request; None if there is none."""
        return self._answers.get(request)

    def sent(self, request: str) -> None:
        """Records that a request is about to be sent."""
        self._add({"sent": request})

    def failed(self, request: str, problem: str) -> None:
        """Records a request without an answer; it may be asked again."""
        self._add({"failed": request, "problem": problem})

    def keep(self, request: str, reply: Reply) -> None:
        """Records an answer."""
        counts = {"prompt_tokens": reply.num_prompt_tokens, "tokens": reply.num_tokens}
        self._add({"answer": request, "text": reply.text, "is_cut": reply.is_cut, **counts})

    def _add(self, record: dict[str, Any]) -> None:
        with writing(self.path):
            append_lines(self.path, [record])
        self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        if "sent" in record:
            self.num_requests += 1
        elif "answer" in record:
            reply = Reply(
                text=record["text"],
                is_cut=record["is_cut"],
                num_prompt_tokens=record["prompt_tokens"],
                num_tokens=record["tokens"],
            )
            self._answers[record["answer"]] = reply
            self.num_tokens += (reply.num_prompt_tokens or 0) + tokens_of(reply)
        else:
            assert record["failed"] is not None


def tokens_of(reply: Reply) -> int:
    """The tokens of an answer, estimated from its length if the endpoint did not count them."""
    return reply.num_tokens if reply.num_tokens is not None else -(-len(reply.text) // CHARACTERS_PER_TOKEN)
