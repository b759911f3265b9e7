"""Decouples training from the tracking server: a queue, one thread that drains it, and journals for outages."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_mmrl.tracking.journal import Entry, Journal, merge_points
from lightning_mmrl.tracking.notices import THREAD, Notices, quiet_clients
from lightning_mmrl.tracking.refusals import NotYetError, RefusedError, UndeliverableError, WaitingError, refused_parts
from lightning_mmrl.types.redaction import redact

_log = logging.getLogger(__name__)

_LONGEST_RETRY_S = 30.0
_LONGEST_REASON = 200


class _OutageError(Exception):
    """The tracking server failed; the next attempt is delayed."""


class Spool:
    """Delivers entries in order on a background thread; `submit` neither waits nor raises.

    Entries wait in memory. When a delivery fails, this entry and all that follow go to `<directory>/<run id>.jsonl`.
    The file is delivered after `retry_s` (doubling up to 30 s), at `close`, or by the next spool of this directory. An
    entry that cannot be sent, or that a working server refuses twice, goes to `<run id>.rejected`, so that it does not
    block the rest; `mmrl tracking flush` sends it again. A run that the server does not have blocks only its own
    entries.

    Args:
        directory: Folder of the journals. Journals of an earlier process are delivered first, by one spool at a time.
        deliver: Sends one entry; raises on failure. Only the spool's thread calls it.
        limit: Entries kept in memory while one delivery hangs; further metrics go to the disk at once.
        retry_s: Shortest time between two attempts, in seconds.

    Raises:
        ConfigError: A journal in the directory has a line that this version does not write.
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
        self._notices = Notices()
        self._changed = threading.Condition()
        self._pending: deque[Entry] = deque()
        self._in_flight: list[Entry] = []
        self._is_down = False
        self._refused: set[str] = set()
        self._closing = False
        self._close_by = 0.0
        self._disk = threading.Lock()
        self._abandoned = False
        self._lock = FileLock(directory / ".lock", thread_local=False)
        self._journals = self._adopt_journals()
        quiet_clients()
        self._thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
        self._thread.start()

    @property
    def is_backlogged(self) -> bool:
        """Whether entries wait on disk for the server to answer again."""
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
        # A point carries its step and its time, so it may overtake entries in memory.
        try:
            self._store([entry])
        except OSError:  # the entries can only be kept in memory now
            with self._changed:
                self._pending.append(entry)

    def close(self, timeout_s: float = 30.0) -> list[Path]:
        """Delivers entries for at most `timeout_s`, and returns the journals with the rest."""
        with self._changed:
            self._closing = True
            self._close_by = time.monotonic() + timeout_s
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
        left = [journal.path for journal in self._journals.values()]
        if left:
            self._notices.say(
                "left",
                f"The tracking server lacks what is in {', '.join(map(str, left))}. The next mmrl train or evaluate "
                f"of this run delivers it, and so does: mmrl tracking flush {self._directory.parent.parent}",
            )
        return left

    def _adopt_journals(self) -> dict[str, Journal]:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            _log.warning("Another process delivers what lies in %s; it is left alone.", self._directory)
            return {}
        journals = [Journal(path) for path in self._directory.glob("*.jsonl")]
        try:
            return {journal.path.stem: journal for journal in journals if not journal.remove_if_done()}
        except BaseException:
            self._lock.release()
            raise

    def _work(self) -> None:
        """Drains the queue until the spool is closed."""
        last_turn = False
        while not last_turn:
            with self._changed:  # waits for entries, the next attempt or `close`
                if not self._pending and not self._closing:
                    wait_s = max(self._next_attempt - time.monotonic(), 0.0) if self._journals else None
                    self._changed.wait(wait_s)
                batch, last_turn = list(self._pending), self._closing
                self._pending.clear()
                self._in_flight = batch
            try:
                self._turn(batch, last_turn)
            except Exception as error:  # e.g. of the local disk: keep the entries in memory, and try again
                self._notices.say("disk", f"Tracking entries cannot be kept in {self._directory}: {_brief(error)}")
                with self._changed:
                    self._pending.extendleft(reversed(self._in_flight))
                    self._in_flight = []
                    self._changed.wait_for(lambda: self._closing, self._retry_s)

    def _turn(self, batch: list[Entry], last_turn: bool) -> None:
        """Delivers a batch, stores the rest in journals, and delivers the journals if an attempt is due."""
        rest = self._send(batch)
        if rest:
            self._store(rest)
        with self._changed:
            self._in_flight = []
        if self._journals and (last_turn or time.monotonic() >= self._next_attempt):
            settling_s = self._replay()
            if last_turn and settling_s and time.monotonic() + settling_s < self._close_by:
                time.sleep(settling_s)
                self._replay()
        if not self._journals:
            self._notices.well()

    def _send(self, batch: Sequence[Entry]) -> list[Entry]:
        """Delivers a batch from memory, and returns each run's entries from its first failure on."""
        entries, kept = list(merge_points(batch)), []
        held = set(self._journals)
        is_down = self._is_down
        for index, entry in enumerate(entries):
            if self._abandoned or is_down or entry.run_id in held:
                kept.append(entry)
                continue
            try:
                self._attempt(entry)
            except (WaitingError, RefusedError):
                held.add(entry.run_id)
                kept.append(entry)
            except (NotYetError, _OutageError):
                is_down = True
                kept.append(entry)
            with self._changed:
                self._in_flight = [*kept, *entries[index + 1 :]]
        return kept

    def _replay(self) -> float:
        """Delivers the journals, oldest run first, until an outage; returns the seconds to wait if they are known.

        A run keeps its journal if the server lacks the run, or refuses one of its entries for the first time.
        """
        with self._disk:
            journals = sorted(self._journals.items())
        for run_id, journal in journals:
            try:
                self._replay_run(run_id, journal)
            except (WaitingError, RefusedError):
                continue
            except NotYetError as error:
                return error.wait_s
            except _OutageError:
                return 0.0
        if not self._journals:
            _log.info("The tracking server has everything that was kept for it.")
        return 0.0

    def _replay_run(self, run_id: str, journal: Journal) -> None:
        """Delivers a journal until nothing is left in it, including entries that are appended meanwhile."""
        while True:
            for entry in merge_points(journal.pending()):
                self._attempt(entry)
                with self._disk:
                    if self._abandoned:
                        return
                    journal.mark_delivered(entry)
            with self._disk:
                if journal.remove_if_done():
                    del self._journals[run_id]
                    return

    def _attempt(self, entry: Entry) -> None:
        """Delivers or rejects one entry; on any other failure warns, delays the next attempt, and raises."""
        refused: list[tuple[Entry, Exception]] = []
        try:
            if entry.run_id in self._refused:
                refused = refused_parts(entry, self._deliver)
            else:
                self._deliver(entry)
        except UndeliverableError as error:
            refused = [(entry, error)]
        except RefusedError:
            self._refused.add(entry.run_id)
            self._put_off()
            raise
        except WaitingError as error:
            self._notices.say("waiting", f"Tracking waits, its entries are kept in {self._directory}: {error}")
            self._put_off()
            raise
        except Exception as error:
            where = f"entries are kept in {self._directory}"
            self._notices.say("failed", f"The tracking server failed ({_brief(error)}); training goes on, {where}.")
            self._put_off()
            self._is_down = True
            if isinstance(error, NotYetError):
                raise
            raise _OutageError from error
        for part, error in refused:
            path = Journal(self._directory / f"{part.run_id}.jsonl").reject(part, error)
            self._notices.say(
                "refused",
                f"The tracking server does not get {part.operation} of run {part.run_id} ({_brief(error)}). It is "
                f"kept in {path}, with what else is refused; mmrl tracking status shows it, mmrl tracking flush sends "
                "it again.",
            )
        self._refused.discard(entry.run_id)
        self._is_down = False
        self._retry_s = self._shortest_retry_s

    def _put_off(self) -> None:
        self._next_attempt = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)

    def _store(self, batch: Sequence[Entry]) -> None:
        with self._disk:
            if not self._abandoned:
                self._write(batch)

    def _write(self, batch: Iterable[Entry]) -> None:
        for run_id, entries in groupby(sorted(batch, key=lambda entry: entry.run_id), key=lambda entry: entry.run_id):
            journal = Journal(self._directory / f"{run_id}.jsonl")
            journal.append(entries)
            self._journals.setdefault(run_id, journal)


def _brief(error: Exception) -> str:
    """The beginning of a message, which may be a whole page, on one line and without credentials."""
    text = " ".join(redact(error).split())
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
