"""What an endpoint was asked and what it answered, in a file that only grows, so that nothing is asked twice.

Each line is written at once. After a kill only requests that were under way are asked again.

The file lies in the folder of the run and counts the requests and tokens of its stage alone. A folder that stages and
runs share has no part in these counts: it lends its outcomes, and gets the stage's.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lightning_mmrl.curriculum.experts.replies import Failure, Reply, Usage
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.files import writing
from lightning_mmrl.tracking.jsonl import append_lines, read_lines

OUTCOMES = ("answer", "refused")
"""Beginnings of lines that say how a question ended for good."""


class Ledger:
    """Requests by their hash.

    Args:
        path: The file of the stage; it need not exist.
        shared: The file of the stage in a folder that it shares, whose other files are read too; None: there is none.
        asker: Stands for model and sampling, see `chat.asker`.
        siblings: Files of other processes of the stage, whose outcomes are read but not counted.

    Attributes:
        num_requests: Requests that this stage sent, in this process and before.
        num_tokens: Tokens of prompts and answers for which this stage was billed, as far as replies came.

    Raises:
        StageError: A line is no line of a ledger.
    """

    def __init__(self, path: Path, shared: Path | None = None, asker: str = "", siblings: Sequence[Path] = ()) -> None:
        self.path, self.shared = path, shared
        self._asker = asker
        self.num_requests = self.num_tokens = 0
        self._answers: dict[str, Reply] = {}
        self._refused: dict[str, str] = {}
        self._answered: set[str] = set()
        own = [record for record in read_lines(path) if self._take(path, record)]
        for file in siblings:
            for record in read_lines(file):
                self._take(file, record, counts=False)
        if shared is None:
            return
        known: set[tuple[str, str]] = set()
        for file in sorted(shared.parent.glob("*.jsonl")):
            for record in read_lines(file):
                if self._take(file, record, counts=False):
                    known.add(_question(record))
        self._share([record for record in own if _question(record) not in known])

    @classmethod
    @contextmanager
    def opened(
        cls, path: Path, shared: Path | None = None, asker: str = "", siblings: Sequence[Path] = ()
    ) -> "Iterator[Ledger]":
        """Gives the block a ledger that no other process writes.

        Raises:
            ConfigError: Another process writes it, or another file of the shared folder.
            DiskError: The disk refuses.
        """
        locks = [f"{path}.lock", *([] if shared is None else [str(shared.parent / ".lock")])]
        with ExitStack() as held:
            for lock in locks:
                with writing(path):
                    Path(lock).parent.mkdir(parents=True, exist_ok=True)
                try:
                    held.enter_context(FileLock(lock, timeout=0))
                except Timeout as error:
                    raise ConfigError(
                        f"the expert's answers {path if shared is None else shared} are in use by another process; "
                        "wait for it, or set another endpoint.answers"
                    ) from error
            yield cls(path, shared, asker, siblings)

    @property
    def has_answers(self) -> bool:
        """Whether a question of this asker was ever answered, so that a refusal is of one question and not of all."""
        return self._asker in self._answered

    def answer(self, request: str) -> Reply | None:
        """The answer to a request; None if there is none."""
        return self._answers.get(request)

    def refusal(self, request: str) -> str | None:
        """Why the endpoint has no answer to this question, though it answers others; None if it is to be asked."""
        return self._refused.get(request) if self.has_answers and request not in self._answers else None

    def sent(self, request: str) -> None:
        """Records that a request is about to be sent."""
        self._add({"sent": request})

    def failed(self, request: str, failure: Failure, billed: int) -> None:
        """Records a request without an answer, and its tokens; one that is not the question's own is asked again."""
        word = "refused" if failure.own else "failed"
        self._add({word: request, "problem": failure.problem, "billed": billed})

    def keep(self, request: str, reply: Reply, billed: int) -> None:
        """Records an answer, and the tokens of prompt and answer."""
        counts = {"prompt_tokens": reply.usage.num_prompt_tokens, "tokens": reply.usage.num_tokens, "billed": billed}
        self._add({"answer": request, "text": reply.text, "is_cut": reply.is_cut, "by": self._asker, **counts})

    def _add(self, record: dict[str, Any]) -> None:
        with writing(self.path):
            append_lines(self.path, [record])
        if self._take(self.path, record):
            self._share([record])

    def _share(self, records: list[dict[str, Any]]) -> None:
        """Adds outcomes to the shared folder; a kill before this is made good when the ledger is opened again."""
        if self.shared is not None and records:
            with writing(self.shared):
                append_lines(self.shared, records)

    def _take(self, path: Path, record: dict[str, Any], *, counts: bool = True) -> bool:
        """Takes a line in; returns whether it is an outcome.

        Raises:
            StageError: It is no line of a ledger.
        """
        try:
            if "answer" in record:
                usage = Usage(num_prompt_tokens=record["prompt_tokens"], num_tokens=record["tokens"])
                reply = Reply(text=record["text"], is_cut=record["is_cut"], usage=usage)
                self._answers[record["answer"]] = reply
                self._answered.add(record.get("by", ""))
            elif "refused" in record:
                self._refused[record["refused"]] = record["problem"]
            elif "sent" not in record:
                assert record["failed"] is not None
            if counts:
                self.num_requests += "sent" in record
                self.num_tokens += _billed(record)
        except (KeyError, TypeError, ValueError) as error:
            raise StageError(
                f"{path} holds {str(record)[:80]}, which is no line of an expert's answers; move the file away"
            ) from error
        return any(word in record for word in OUTCOMES)


def _question(record: dict[str, Any]) -> tuple[str, str]:
    """The beginning of the line of an outcome, and the hash of its question."""
    return next((word, record[word]) for word in OUTCOMES if word in record)


def _billed(record: dict[str, Any]) -> int:
    """The tokens that a line says were billed; if it does not say, the tokens of the answer and its prompt."""
    if "answer" not in record or "billed" in record:
        return int(record.get("billed", 0))
    usage = Usage(num_prompt_tokens=record["prompt_tokens"] or 0, num_tokens=record["tokens"])
    return usage.billed(asked=0, said=len(record["text"]))
