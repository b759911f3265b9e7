"""Entries that runs left undelivered in a spool: counts by run, and their delivery by `mmrl tracking flush`."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.files import write_whole
from lightning_mmrl.tracking.journal import DAMAGED, REJECTED, Entry, Journal, merge_points
from lightning_mmrl.tracking.jsonl import unreadable_lines
from lightning_mmrl.tracking.refusals import WaitingError, refused_parts
from lightning_mmrl.types.redaction import redact

SPOOL = "spool"
"""Folder in output_dir that holds one folder for each store."""

STORE = "store.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Numbers of undelivered (`pending`) and refused (`rejected`) entries of one run, and the last refusal's reason."""

    run_id: str
    pending: int
    pending_points: int
    rejected: int
    rejected_points: int
    reason: str | None


def note_store(spool: Path, uri: str, experiment: str) -> None:
    """Writes the store of a spool into its folder, without credentials."""
    content = {"uri": uri, "experiment": experiment}
    if read_store(spool) != content:
        write_whole(spool / STORE, json.dumps(content) + "\n", shared=True, durable=False)


def read_store(spool: Path) -> dict[str, str] | None:
    """The address and the experiment of a spool's store; None if they are not noted or the note is damaged."""
    if not (spool / STORE).is_file():
        return None
    try:
        content = json.loads((spool / STORE).read_text(encoding="utf-8"))
        return {"uri": str(content["uri"]), "experiment": str(content["experiment"])}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def leftovers(spool: Path, runs: Collection[str] | None = None) -> list[Leftover]:
    """Undelivered and refused entries by run; if `runs` are given, of these runs only."""
    ids = {path.stem for suffix in (".jsonl", REJECTED) for path in spool.glob(f"*{suffix}")}
    found = []
    for run_id in sorted(ids if runs is None else ids & set(runs)):
        journal = Journal(spool / f"{run_id}.jsonl")
        pending, rejected = journal.pending(), journal.rejected()
        if pending or rejected:
            points = [
                sum(len(entry.payload["points"]) for entry in entries if entry.operation == "metrics")
                for entries in (pending, [entry for entry, _ in rejected])
            ]
            found.append(
                Leftover(
                    run_id=run_id,
                    pending=len(pending),
                    pending_points=points[0],
                    rejected=len(rejected),
                    rejected_points=points[1],
                    reason=rejected[-1][1] if rejected else None,
                )
            )
    return found


def damaged_lines(spool: Path, runs: Collection[str] | None = None) -> dict[Path, int]:
    """Maps files of a spool to their numbers of unreadable lines; if `runs` are given, of these runs only."""
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
    """Delivers all undelivered and all refused entries, and returns the entries that are left.

    An outage ends the delivery; a run that the server does not have is skipped. Refused entries are older than
    undelivered ones, so their tags and status do not replace newer values.

    Raises:
        ConfigError: Another process delivers from this spool.
    """
    try:
        lock = FileLock(spool / ".lock", timeout=0).acquire()
    except Timeout as error:
        if not (spool / ".lock").exists():
            raise ConfigError(f"no lock file can be made in {spool}; move the folder to a local disk") from error
        raise ConfigError(f"another process, such as a training, delivers what lies in {spool}; wait for it") from error
    with lock:
        for left in leftovers(spool, runs):
            journal = Journal(spool / f"{left.run_id}.jsonl")
            try:
                sent = _send(journal, deliver)
            except WaitingError as error:
                say(f"run {left.run_id}: {redact(error)}")
            except Exception as error:  # whatever the client raises
                say(f"the tracking server failed ({redact(error)})")
                break
            else:
                refused = len(journal.rejected())
                rest = f", {refused} entries refused" if refused else ""
                say(f"run {left.run_id}: {sent['points']} points and {sent['others']} other entries delivered{rest}")
        return leftovers(spool, runs)


def _send(journal: Journal, deliver: Callable[[Entry], None]) -> Counter[str]:
    """Delivers the entries of one run, and tries refused entries again; counts delivered `points` and `others`."""
    sent: Counter[str] = Counter()

    def counted(entry: Entry) -> None:
        deliver(entry)
        is_metrics = entry.operation == "metrics"
        sent["points" if is_metrics else "others"] += len(entry.payload["points"]) if is_metrics else 1

    while not journal.remove_if_done():
        for entry in merge_points(journal.pending()):
            for part, error in refused_parts(entry, counted):
                journal.reject(part, error)
            journal.mark_delivered(entry)
    entries, kept = journal.rejected(), []
    for index, (entry, reason) in enumerate(entries):
        try:
            refused = refused_parts(dataclasses.replace(entry, late=True), counted)
        except Exception:
            journal.keep_rejected([*kept, (entry, reason), *entries[index + 1 :]])
            raise
        kept += [(dataclasses.replace(part, late=entry.late), redact(error)) for part, error in refused]
    journal.keep_rejected(kept)
    return sent
