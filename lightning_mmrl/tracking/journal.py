"""The undelivered entries of one run, kept on disk until the tracking server has them."""

import dataclasses
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.files import write_whole
from lightning_mmrl.tracking.jsonl import append_lines, as_lines, numbered_lines, unreadable_lines
from lightning_mmrl.types.redaction import redact

Operation = Literal["create", "metrics", "params", "tags", "dataset", "artifact", "table", "model", "status", "nest"]

REJECTED = ".rejected"
"""Suffix of the file with entries that a server refused."""
DAMAGED = ".damaged"
"""Suffix of the file with lines that cannot be read."""

_POINTS_PER_REQUEST = 1000  # MLflow's limit for one log_batch call


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One call on its way to the tracking server; `payload` holds JSON values only.

    A `late` entry reaches the server after newer entries; its tags and status do not overwrite the newer ones.

    >>> Entry(run_id="4f2a", operation="tags", payload={"stage": "reason"}).operation
    'tags'
    """

    run_id: str
    operation: Operation
    payload: Mapping[str, Any]
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    late: bool = False


class Journal:
    """An append-only file of entries, and of marks for the entries that the server has.

    After a crash between a delivery and its mark the entry is delivered again. That does no harm, because points carry
    their own time and step.

    Args:
        path: `<run id>.jsonl`; it exists only while something is undelivered.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writing = FileLock(path.with_name(".writing"))  # several processes may append to and remove files here

    def append(self, entries: Iterable[Entry]) -> None:
        with self._writing:
            append_lines(self.path, (dataclasses.asdict(entry) for entry in entries), durable=True)

    def pending(self) -> list[Entry]:
        """Returns the undelivered entries, oldest first.

        Raises:
            ConfigError: A line is not as this version writes it.
        """
        entries: list[Entry] = []
        positions: dict[str, int] = {}
        num_delivered = 0
        for number, record in numbered_lines(self.path):
            if "delivered" in record:
                num_delivered = max(num_delivered, positions.get(str(record["delivered"]), -1) + 1)
                continue
            entry = self._entry(record, self.path, number)
            positions.setdefault(entry.key, len(entries))
            entries.append(entry)
        return entries[num_delivered:]

    def mark_delivered(self, entry: Entry) -> None:
        """Marks this entry and all before it as delivered."""
        append_lines(self.path, [{"delivered": entry.key}], durable=True)

    def reject(self, entry: Entry, reason: object) -> Path:
        """Moves an entry that the server refuses to the file of refused entries, and returns that file."""
        path = self.path.with_suffix(REJECTED)
        append_lines(path, [{**dataclasses.asdict(entry), "reason": redact(reason)}], durable=True)
        return path

    def rejected(self) -> list[tuple[Entry, str]]:
        """Returns the refused entries with the reasons, oldest first.

        Raises:
            ConfigError: A line is not as this version writes it.
        """
        path = self.path.with_suffix(REJECTED)
        found = []
        for number, record in numbered_lines(path):
            reason = record.pop("reason", "")
            found.append((self._entry(record, path, number), str(reason)))
        return found

    def keep_rejected(self, kept: Iterable[tuple[Entry, str]]) -> None:
        """Rewrites the file of refused entries with `kept` alone, and removes the file if there are none."""
        path = self.path.with_suffix(REJECTED)
        records = [{**dataclasses.asdict(entry), "reason": reason} for entry, reason in kept]
        if not records:
            path.unlink(missing_ok=True)
            return
        write_whole(path, as_lines(records), shared=True)

    def remove_if_done(self) -> bool:
        """Removes the file if all its entries are delivered, and returns whether it did.

        Lines that cannot be read are moved to the `.damaged` file first.
        """
        with self._writing:
            if self.pending():
                return False
            damaged = unreadable_lines(self.path)
            if damaged:
                with self.path.with_suffix(DAMAGED).open("a", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in damaged)
            self.path.unlink(missing_ok=True)
            return True

    def _entry(self, record: Mapping[str, Any], path: Path, number: int) -> Entry:
        """Reads the entry of a line; fields that this version does not write make it malformed."""
        unknown = sorted(set(record) - {each.name for each in dataclasses.fields(Entry)})
        kinds = (("operation", str), ("payload", dict), ("key", str))
        malformed = [name for name, kind in kinds if not isinstance(record.get(name), kind)]
        if unknown:
            fault = f"has the unknown key {unknown[0]!r}"
        elif record.get("run_id") != self.path.stem:
            fault = f"has the run_id {record.get('run_id')!r}, not that of its file"
        elif malformed:
            fault = f"has no {malformed[0]} of its kind"
        elif record["operation"] == "metrics" and not (
            isinstance(points := record["payload"].get("points"), list)
            and all(isinstance(point, list) and len(point) == 4 for point in points)
        ):
            fault = "has no points of four values"
        else:
            return Entry(**record)
        raise ConfigError(
            f"{path}, line {number} {fault}: it is of another version or damaged; deliver it with the version of "
            "lightning_mmrl that wrote it, or move the file away"
        )


def merge_points(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Joins neighboring metric entries of one run, so that a long backlog takes few requests.

    A joined entry carries the key of its last part.
    """
    joined: Entry | None = None
    for entry in entries:
        if joined is not None and joined.operation == entry.operation == "metrics" and joined.run_id == entry.run_id:
            points = [*joined.payload["points"], *entry.payload["points"]]
            if len(points) <= _POINTS_PER_REQUEST:
                joined = dataclasses.replace(entry, payload={"points": points})
                continue
        if joined is not None:
            yield joined
        joined = entry
    if joined is not None:
        yield joined
