"""Keeps training apart from the tracking server: a queue, one thread that drains it, and journals for outages."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_mmrl.tracking.journal import Entry, Journal, merge_points
from lightning_mmrl.tracking.redaction import redact

_log = logging.getLogger(__name__)

_LONGEST_RETRY_S = 30.0


class UndeliverableError(Exception):
    """The server answered, and will never take this entry."""


class Spool:
    """Delivers entries in order from a thread of its own; `submit` neither waits nor raises.

    Entries wait in memory. When a delivery fails, it and all that follow go to `<directory>/<run id>.jsonl`, which is
    tried again after `retry_s` (doubling up to 30 s), at `close`, and by the next spool of this directory. An entry
    that `deliver` calls `UndeliverableError` is kept in `<run id>.rejected`, so that it does not hold up the rest.

    Args:
        directory: Where the journals lie; those of an earlier process are delivered first, by one spool at a time.
        deliver: Sends one entry; raises on failure. Only the spool's thread calls it.
        limit: Entries kept in memory while one delivery hangs; metrics above it are counted and dropped.
        retry_s: Shortest time between two attempts, in seconds.
    """

    def __init__(
        self, directory: Path, deliver: Callable[[Entry], None], *, limit: int = 10_000, retry_s: float = 1.0
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._deliver = deliver
        self._limit = limit
        self._shortest_retry_s = retry_s
        self._retry_s = retry_s
        self._next_attempt = 0.0
        self._changed = threading.Condition()
        self._pending: deque[Entry] = deque()
        self._in_flight: list[Entry] = []
        self._num_dropped = 0
        self._closing = False
        self._disk = threading.Lock()
        self._abandoned = False
        self._lock = FileLock(directory / ".lock", thread_local=False)
        self._journals = self._adopt_journals()
        self._thread = threading.Thread(target=self._work, name="mmrl-tracking", daemon=True)
        self._thread.start()

    @property
    def is_backlogged(self) -> bool:
        """Whether something waits on disk for the server to answer again."""
        return bool(self._journals)

    def submit(self, entry: Entry) -> None:
        if self._abandoned:
            _log.warning("Tracking is closed; %s of run %s is not sent.", entry.operation, entry.run_id)
            return
        with self._changed:
            if len(self._pending) < self._limit or entry.operation != "metrics":
                self._pending.append(entry)
                self._changed.notify()
                return
            self._num_dropped += 1
            first = self._num_dropped == 1
        if first:
            _log.warning("The tracking queue is full (%d entries); metrics are dropped.", self._limit)

    def close(self, timeout_s: float = 30.0) -> list[Path]:
        """Delivers what it can within `timeout_s` and returns the journals of what is left."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._disk:
            self._abandoned = True
        with self._changed:
            rest = [*self._in_flight, *self._pending]
            self._in_flight = []
            self._pending.clear()
        try:
            self._write(rest)
        except OSError as error:
            _log.error("%d tracking entries are lost: %s", len(rest), error)
        self._lock.release()
        return self._report_rest()

    def _adopt_journals(self) -> dict[str, Journal]:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            _log.warning("Another process delivers what lies in %s; it is left alone.", self._directory)
            return {}
        journals = [Journal(path) for path in self._directory.glob("*.jsonl")]
        for journal in journals:
            if not journal.pending():
                journal.remove()
        return {journal.path.stem: journal for journal in journals if journal.path.exists()}

    def _report_rest(self) -> list[Path]:
        left = [journal.path for journal in self._journals.values()]
        if left:
            names = ", ".join(map(str, left))
            _log.warning("The tracking server lacks what is in %s; the next start of this run delivers it.", names)
        if self._num_dropped:
            _log.warning("%d metric calls were dropped because the tracking queue was full.", self._num_dropped)
        return left

    def _work(self) -> None:
        """Drains the queue until the spool is closed."""
        last_turn = False
        while not last_turn:
            batch, last_turn = self._take()
            try:
                self._turn(batch, last_turn)
            except OSError as error:  # the local disk: keep the entries in memory, and try again
                _log.warning("Tracking entries cannot be kept in %s: %s", self._directory, error)
                with self._changed:
                    self._pending.extendleft(reversed(self._in_flight))
                    self._in_flight = []
                    self._changed.wait_for(lambda: self._closing, self._retry_s)

    def _turn(self, batch: list[Entry], last_turn: bool) -> None:
        if not self._journals:
            batch = self._send(batch)
        if batch:
            self._store(batch)
        with self._changed:
            self._in_flight = []
        if self._journals and (last_turn or time.monotonic() >= self._next_attempt):
            self._replay()

    def _take(self) -> tuple[list[Entry], bool]:
        """Waits for entries, for the next attempt or for the end; returns the entries and whether it is the end."""
        with self._changed:
            if not self._pending and not self._closing:
                wait_s = max(self._next_attempt - time.monotonic(), 0.0) if self._journals else None
                self._changed.wait(wait_s)
            batch = list(self._pending)
            self._pending.clear()
            self._in_flight = batch
            return batch, self._closing

    def _send(self, batch: Sequence[Entry]) -> list[Entry]:
        """Delivers a batch from memory and returns what is left of it at the first failure."""
        entries = list(merge_points(batch))
        for index, entry in enumerate(entries):
            if self._abandoned or not self._attempt(entry):
                return entries[index:]
            with self._changed:
                self._in_flight = entries[index + 1 :]
        return []

    def _replay(self) -> None:
        """Delivers the journals, oldest run first, up to the first failure."""
        for run_id, journal in sorted(self._journals.items()):
            entries = deque(merge_points(journal.pending()))
            while entries:
                if not self._attempt(entries[0]):
                    return
                with self._disk:
                    if self._abandoned:
                        return
                    journal.mark_delivered(entries.popleft())
                    if not entries:
                        journal.remove()
                        del self._journals[run_id]
        _log.info("The tracking server has everything that was kept for it.")

    def _attempt(self, entry: Entry) -> bool:
        """Delivers or rejects one entry; returns False, and sets the time of the next attempt, on an outage."""
        try:
            self._deliver(entry)
        except UndeliverableError as error:
            path = self._journal(entry.run_id).reject(entry, redact(error))
            _log.warning(
                "The tracking server refused %s of run %s (%s); kept in %s.",
                entry.operation,
                entry.run_id,
                redact(error),
                path,
            )
        except Exception as error:  # whatever the client raises, training goes on
            self._next_attempt = time.monotonic() + self._retry_s
            if self._retry_s == self._shortest_retry_s:
                _log.warning("The tracking server failed (%s); entries are kept in %s.", redact(error), self._directory)
            self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)
            return False
        self._retry_s = self._shortest_retry_s
        return True

    def _store(self, batch: Sequence[Entry]) -> None:
        with self._disk:
            if not self._abandoned:
                self._write(batch)

    def _write(self, batch: Sequence[Entry]) -> None:
        for run_id in dict.fromkeys(entry.run_id for entry in batch):
            journal = self._journal(run_id)
            journal.append(entry for entry in batch if entry.run_id == run_id)
            self._journals.setdefault(run_id, journal)

    def _journal(self, run_id: str) -> Journal:
        return Journal(self._directory / f"{run_id}.jsonl")
