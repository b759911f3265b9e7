"""Which samples a run leaves out: decided when each is first read, and kept for whatever reads it later."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_mmrl.errors import DataError
from lightning_mmrl.types.records import Sample

EXCLUSIONS = "exclusions.json"
_VERSION = 1


class Exclusions:
    """Decisions about the samples of named sets, written down before anything uses them.

    A sample that was left out stays out, although its file may be whole by now; one that was used must be there. So
    every resume, every stage and every rank sees the same samples. A line that was changed is another sample.

        {"version": 1, "sets": {"emotions/train.jsonl 3f0c81d2": {
            "used": {"clip-1": "9be1c0aa"},
            "left_out": {"clip-2": {"content": "07d4f3b1", "reason": "..."}}}}}

    Args:
        path: Where the decisions are; None keeps them in memory.
        decides: False on a rank that only follows decisions.
    """

    def __init__(self, path: Path | None = None, *, decides: bool = True) -> None:
        self.path = path
        self.decides = decides
        self._kept: dict[str, Any] = {}

    def decided(self, name: str, samples: Sequence[Sample]) -> dict[str, str | None]:
        """By id, why a sample is left out, or None if it is used; samples that are not decided yet have no entry.

        Raises:
            DataError: The file is damaged.
        """
        entry = self._sets().get(name, {"used": {}, "left_out": {}})
        found: dict[str, str | None] = {}
        for sample in samples:
            content = _content(sample)
            left_out = entry["left_out"].get(sample.id)
            if left_out is not None and left_out["content"] == content:
                found[sample.id] = left_out["reason"]
            elif entry["used"].get(sample.id) == content:
                found[sample.id] = None
        return found

    def decide(self, name: str, samples: Sequence[Sample], reasons: Mapping[str, str]) -> None:
        """Writes down of samples that were not decided yet: those with a reason are left out, the others used.

        Raises:
            DataError: The file is damaged.
        """
        sets = self._sets()
        entry = sets.setdefault(name, {"used": {}, "left_out": {}})
        for sample in samples:
            content, reason = _content(sample), reasons.get(sample.id)
            if reason is None:
                entry["used"][sample.id] = content
            else:
                entry["left_out"][sample.id] = {"content": content, "reason": reason}
        self._kept = sets
        if self.path is not None:
            _write(self.path, {"version": _VERSION, "sets": sets})

    def _sets(self) -> dict[str, Any]:
        if self.path is None or not self.path.exists():
            return self._kept if self.path is None else {}
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["version"] == _VERSION:
                return found["sets"]
            problem = f"version {found['version']}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = str(error)
        raise DataError(
            f"{self.path} cannot be read ({problem}); it says which samples this run leaves out: restore it, or set a "
            "new run_name"
        )


def context_of(*parts: object) -> str:
    """A short name for all that decides, beside the file, whether a sample can be used."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=4).hexdigest()


def _content(sample: Sample) -> str:
    return context_of(sample.messages, sample.media)


def _write(path: Path, content: object) -> None:
    """All or nothing: a run that was killed here finds the earlier decisions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
