"""What runs left undelivered: which entries lie in a spool, for which run and server, and how they get there."""

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.files import write_whole
from lightning_mmrl.tracking.journal import DAMAGED, REJECTED, Entry, Journal, merge_points
from lightning_mmrl.tracking.jsonl import unreadable_lines
from lightning_mmrl.tracking.refusals import WaitingError, refused_parts
from lightning_mmrl.types.redaction import redact

SPOOL = "spool"
"""Folder in output_dir with a folder for each store."""

STORE = "store.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """What one run has in a spool: entries and points that are undelivered and that were refused, and why."""

    run_id: str
    pending: int
    pending_points: int
    rejected: int
    rejected_points: int
    reason: str | None


def note_store(spool: Path, uri: str, experiment: str) -> None:
    """Writes down, without credentials, which store a spool is for."""
    content = {"uri": uri, "experiment": experiment}
    if read_store(spool) != content:
        write_whole(spool / STORE, json.dumps(content) + "\n", shared=True, durable=False)


def read_store(spool: Path) -> dict[str, str] | None:
    """The address and the experiment that a spool is for; None if it does not say."""
    if not (spool / STORE).is_file():
        return None
    try:
        content = json.loads((spool / STORE).read_text(encoding="utf-8"))
        return {"uri": str(content["uri"]), "experiment": str(content["experiment"])}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def leftovers(spool: Path, runs: Collection[str] | None = None) -> list[Leftover]:
    """What is undelivered or was refused, by run; of these runs alone if they are given."""
    ids = {path.stem for suffix in (".jsonl", REJECTED) for path in spool.glob(f"*{suffix}")}
    found = []
    for run_id in sorted(ids if runs is None else ids & set(runs)):
        journal = Journal(spool / f"{run_id}.jsonl")
        pending, rejected = journal.pending(), journal.rejected()
        if pending or rejected:
            found.append(
                Leftover(
                    run_id=run_id,
                    pending=len(pending),
                    pending_points=_points(pending),
                    rejected=len(rejected),
                    rejected_points=_points([entry for entry, _ in rejected]),
                    reason=rejected[-1][1] if rejected else None,
                )
            )
    return found


def damaged_lines(spool: Path, runs: Collection[str] | None = None) -> dict[Path, int]:
    """The number of unreadable lines by file of a spool; of these runs alone if they are given."""
    files = sorted(path for suffix in (".jsonl", REJECTED, DAMAGED) for path in spool.glob(f"*{suffix}"))
    found = {path: len(unreadable_lines(path)) for path in files if runs is None or path.stem in runs}
    return {path: number for path, number in found.items() if number}


def flush(
    spool: Path,
    deliver: Callable[[Entry], None],
    *,
    runs: Collection[str] | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> list[Leftover]:
    """Delivers what is undelivered, what was refused before included, and returns what is left.

    An outage ends it; a run that the server does not have is passed over. What was refused is older than what waits:
    a tag or a status among it does not replace a later one.

    Raises:
        ConfigError: Another process delivers what lies there.
    """
    with _alone(spool):
        for left in leftovers(spool, runs):
            journal = Journal(spool / f"{left.run_id}.jsonl")
            counted = _Counted(deliver)
            try:
                _send_pending(journal, counted)
                _send_rejected(journal, counted)
            except WaitingError as error:
                say(f"run {left.run_id}: {redact(error)}")
            except Exception as error:  # whatever the client raises
                say(f"the tracking server failed ({redact(error)})")
                break
            else:
                refused = len(journal.rejected())
                rest = f", {refused} entries refused" if refused else ""
                say(f"run {left.run_id}: {counted.points} points and {counted.others} other entries delivered{rest}")
        return leftovers(spool, runs)


@contextmanager
def _alone(spool: Path) -> Iterator[None]:
    try:
        with FileLock(spool / ".lock", timeout=0):
            yield
    except Timeout as error:
        if not (spool / ".lock").exists():
            raise ConfigError(f"no lock file can be made in {spool}; move the folder to a local disk") from error
        raise ConfigError(f"another process, such as a training, delivers what lies in {spool}; wait for it") from error


def _send_pending(journal: Journal, deliver: Callable[[Entry], None]) -> None:
    while not journal.remove_if_done():
        for entry in merge_points(journal.pending()):
            for part, error in refused_parts(entry, deliver):
                journal.reject(part, error)
            journal.mark_delivered(entry)


def _send_rejected(journal: Journal, deliver: Callable[[Entry], None]) -> None:
    entries, kept = journal.rejected(), []
    for index, (entry, reason) in enumerate(entries):
        try:
            refused = refused_parts(dataclasses.replace(entry, late=True), deliver)
        except Exception:
            journal.keep_rejected([*kept, (entry, reason), *entries[index + 1 :]])
            raise
        kept += [(dataclasses.replace(part, late=entry.late), redact(error)) for part, error in refused]
    journal.keep_rejected(kept)


class _Counted:
    """Counts the points and the other entries that a delivery was well with."""

    def __init__(self, deliver: Callable[[Entry], None]) -> None:
        self._deliver = deliver
        self.points = 0
        self.others = 0

    def __call__(self, entry: Entry) -> None:
        self._deliver(entry)
        if entry.operation == "metrics":
            self.points += len(entry.payload["points"])
        else:
            self.others += 1


def _points(entries: list[Entry]) -> int:
    payloads: list[Any] = [entry.payload for entry in entries if entry.operation == "metrics"]
    return sum(len(payload["points"]) for payload in payloads)
