"""The judged batches of an evaluation, kept on disk while it runs, so that an interrupted one continues."""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.files import dispensable, write_pieces

PROGRESS = "evaluation.progress"
VERSION = 1
_WHAT = "judged batches"

Batches = dict[str, list[list[Judgement]]]
"""For each set, the judgements of its first batches, batch by batch."""


class JudgedBatches:
    """A file with one line for each judged batch, after a first line that says what they are judgements of.

        {"version": 1, "bound": {...}}
        {"set": "test", "judged": [{"sample_id": "clip-1", ...}, ...]}

    A batch that was killed while it was written is half a line, or a line that is not JSON after a loss of power; it
    and all that follows do not count.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[Mapping[str, Any] | None, Batches]:
        """Returns what the batches belong to, None if there is no usable file, and the batches of each set."""
        if not self.path.is_file():
            return None, {}
        lines = self.path.read_bytes().split(b"\n")[:-1]
        bound, found = None, Batches()
        for number, line in enumerate(lines):
            try:
                values = json.loads(line)
                if number == 0:
                    bound = values["bound"] if values["version"] == VERSION else None
                else:
                    judged = [Judgement.from_json(json.dumps(each)) for each in values["judged"]]
                    found.setdefault(values["set"], []).append(judged)
            except (ValueError, KeyError, TypeError, RecursionError, DataError):
                break
        return (bound, found) if isinstance(bound, Mapping) else (None, {})

    def begin(self, bound: Mapping[str, Any], batches: Mapping[str, Sequence[Sequence[Judgement]]]) -> None:
        """Replaces the file by one with these batches, unless the disk refuses it."""
        head = json.dumps({"version": VERSION, "bound": bound}).encode() + b"\n"
        lines = (_line(name, batch) for name, judged in batches.items() for batch in judged)
        with dispensable(_WHAT, self.path.parent):
            write_pieces(self.path, chain([head], lines))

    def keep(self, name: str, batch: Sequence[Judgement]) -> None:
        """Adds a batch of a set, unless the disk refuses it; a process that is killed later cannot take it away."""
        with dispensable(_WHAT, self.path.parent), self.path.open("ab") as file:
            file.write(_line(name, batch))

    def end(self) -> None:
        """Removes the file, once the results are written."""
        self.path.unlink(missing_ok=True)


def _line(name: str, batch: Sequence[Judgement]) -> bytes:
    judged = ", ".join(judgement.to_json() for judgement in batch)
    return f'{{"set": {json.dumps(name)}, "judged": [{judged}]}}\n'.encode()
