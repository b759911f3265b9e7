"""Which samples a run leaves out: decided when each is first read, and kept for whatever reads it later."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from lightning_mmrl.errors import DataError
from lightning_mmrl.files import write_whole
from lightning_mmrl.types.records import Sample

EXCLUSIONS = "exclusions.json"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidedSet:
    """The samples of a manifest in one use.

    Attributes:
        manifest: Its file name below the root.
        root: Its folder, however it is spelled.
        use: By name, what decides beside the files whether a sample can be used: plain values, as JSON has them.
    """

    manifest: str
    root: Path
    use: Mapping[str, object]


class Exclusions:
    """Decisions about the samples of some sets, written down before anything uses them.

    A sample that was left out stays out, although its file may be whole by now; one that was used must be there. So
    every resume, every stage and every rank sees the same samples. A line that was changed is another sample.

        {"version": 1, "sets": [{
            "manifest": "train.jsonl", "root": "/data/emotions", "use": {"supervised": false, "num_frames": 8},
            "used": {"clip-1": "9be1c0aa"},
            "left_out": {"clip-2": {"content": "07d4f3b1", "reason": "..."}}}]}

    Decisions follow a folder that was moved: they hold for one of the same name if theirs is gone. While theirs is
    there, one elsewhere is another set, such as a second source.

    Args:
        path: Where the decisions are; None keeps them in memory.
        decides: False on a rank that only follows decisions.
    """

    def __init__(self, path: Path | None = None, *, decides: bool = True) -> None:
        self.path = path
        self.decides = decides
        self._kept: list[dict[str, Any]] = []

    def decided(self, which: DecidedSet, samples: Sequence[Sample]) -> dict[str, str | None]:
        """By id, why a sample is left out, or None if it is used; samples that are not decided yet have no entry.

        Raises:
            DataError: The file is damaged.
        """
        entry = _entry_of(self._sets(), which)
        return {} if entry is None else _decisions(entry, samples)

    def void(self, which: DecidedSet, samples: Sequence[Sample]) -> str | None:
        """Why decisions on these samples do not hold for the set, None if there are none.

        Raises:
            DataError: The file is damaged.
        """
        sets = self._sets()
        if _entry_of(sets, which) is not None:
            return None
        for entry in reversed(sets):
            use = entry["use"]
            # Supervised stages and others have decisions of their own in every run.
            is_other = entry["manifest"] != which.manifest or use.get("supervised") != which.use.get("supervised")
            if is_other or not _decisions(entry, samples):
                continue
            changed = [key for key in {**use, **which.use} if use.get(key) != which.use.get(key)]
            where = "is still there" if Path(entry["root"]).exists() else "had another name"
            cause = f"another {', '.join(changed)}" if changed else f"the media of {entry['root']}, which {where}"
            return f"{self.path} holds decisions made with {cause}; which samples are left out is decided anew"
        return None

    def decide(self, which: DecidedSet, samples: Sequence[Sample], reasons: Mapping[str, str]) -> None:
        """Writes down of samples that were not decided yet: those with a reason are left out, the others used.

        Raises:
            DataError: The file is damaged.
        """
        sets = self._sets()
        entry = _entry_of(sets, which)
        if entry is None:
            entry = {"manifest": which.manifest, "use": dict(which.use), "used": {}, "left_out": {}}
            sets.append(entry)
        entry["root"] = str(which.root.resolve())
        for sample in samples:
            content, reason = _content(sample), reasons.get(sample.id)
            if reason is None:
                entry["used"][sample.id] = content
            else:
                entry["left_out"][sample.id] = {"content": content, "reason": reason}
        self._kept = sets
        if self.path is not None:
            # All or nothing: a run that is killed here finds the earlier decisions.
            write_whole(self.path, json.dumps({"version": _VERSION, "sets": sets}, indent=1))

    def _sets(self) -> list[dict[str, Any]]:
        if self.path is None or not self.path.exists():
            return self._kept if self.path is None else []
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


def _entry_of(sets: Sequence[dict[str, Any]], which: DecidedSet) -> dict[str, Any] | None:
    """The entry of a set: of its folder, else of a folder that is gone and whose path ends alike."""
    here = which.root.resolve()
    alike = [entry for entry in sets if entry["manifest"] == which.manifest and entry["use"] == which.use]
    own = next((entry for entry in alike if entry["root"] == str(here)), None)
    if own is not None:
        return own
    moved = [(_num_alike(here, Path(entry["root"])), entry) for entry in alike if not Path(entry["root"]).exists()]
    num, entry = max(moved, key=lambda each: each[0], default=(0, None))
    return entry if num else None


def _num_alike(one: Path, other: Path) -> int:
    """Components that two paths have in common at their ends."""
    pairs = zip(reversed(one.parts), reversed(other.parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _decisions(entry: Mapping[str, Any], samples: Sequence[Sample]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for sample in samples:
        content = _content(sample)
        left_out = entry["left_out"].get(sample.id)
        if left_out is not None and left_out["content"] == content:
            found[sample.id] = left_out["reason"]
        elif entry["used"].get(sample.id) == content:
            found[sample.id] = None
    return found


def _content(sample: Sample) -> str:
    """A short name for what a sample shows and asks, by fields that are named here."""
    turns = [[message.role, message.content] for message in sample.messages]
    media = [[ref.kind, ref.path, ref.start_s, ref.end_s] for ref in sample.media]
    return hashlib.blake2b(json.dumps([turns, media]).encode(), digest_size=4).hexdigest()
