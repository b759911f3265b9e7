"""Decides, when a sample is first read, whether the run leaves it out; every later reader follows this decision."""

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
    """A manifest together with the settings under which its samples were judged.

    Attributes:
        manifest: File name below the root.
        root: Folder of the manifest.
        use: All settings, by name, that decide whether a sample can be used; the values are plain, as in JSON.
    """

    manifest: str
    root: Path
    use: Mapping[str, object]


class Exclusions:
    """Decisions to use samples or to leave them out, saved before any sample is used.

    A sample that was left out stays out, even if its file has been repaired since; a sample that was used must still
    be usable. So every resumed run, every stage and every rank sees the same samples. A line that was changed is a
    new sample.

        {"version": 1, "sets": [{
            "manifest": "train.jsonl", "root": "/data/emotions", "use": {"supervised": false, "num_frames": 8},
            "used": {"clip-1": "9be1c0aa"},
            "left_out": {"clip-2": {"content": "07d4f3b1", "reason": "..."}}}]}

    Decisions still apply after a folder was moved: if the old folder is gone, they apply to a folder of the same name.
    As long as the old folder exists, a folder elsewhere counts as another set, such as a second source.

    Args:
        path: File of the decisions; None keeps them in memory.
        decides: False on a rank that only follows decisions.
    """

    def __init__(self, path: Path | None = None, *, decides: bool = True) -> None:
        self.path = path
        self.decides = decides
        self._kept: list[dict[str, Any]] = []

    def decided(self, which: DecidedSet, samples: Sequence[Sample]) -> dict[str, str | None]:
        """Maps sample ids to the reason for leaving the sample out, or None if it is used; undecided ids are absent.

        Raises:
            DataError: The file is damaged.
        """
        entry = _entry_of(self._sets(), which)
        return {} if entry is None else _decisions(entry, samples)

    def void(self, which: DecidedSet, samples: Sequence[Sample]) -> str | None:
        """Returns why earlier decisions about these samples do not apply to the set; None if they apply or none exist.

        Raises:
            DataError: The file is damaged.
        """
        sets = self._sets()
        if _entry_of(sets, which) is not None:
            return None
        for entry in reversed(sets):
            use = entry["use"]
            # Supervised and other stages have separate decisions in every run.
            is_other = entry["manifest"] != which.manifest or use.get("supervised") != which.use.get("supervised")
            if is_other or not _decisions(entry, samples):
                continue
            changed = [key for key in {**use, **which.use} if use.get(key) != which.use.get(key)]
            where = "is still there" if Path(entry["root"]).exists() else "had another name"
            cause = f"another {', '.join(changed)}" if changed else f"the media of {entry['root']}, which {where}"
            return f"{self.path} holds decisions made with {cause}; which samples are left out is decided anew"
        return None

    def decide(self, which: DecidedSet, samples: Sequence[Sample], reasons: Mapping[str, str]) -> None:
        """Saves decisions about undecided samples: samples with a reason are left out, the others are used.

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
            # Written atomically, so that a run that is killed here keeps the earlier decisions.
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
    """Returns the entry of a set's folder, or else of a folder that is gone and whose path ends with the same names."""
    here = which.root.resolve()
    alike = [entry for entry in sets if entry["manifest"] == which.manifest and entry["use"] == which.use]
    own = next((entry for entry in alike if entry["root"] == str(here)), None)
    if own is not None:
        return own
    moved = []
    for root, entry in ((Path(entry["root"]), entry) for entry in alike):
        if not root.exists():
            pairs = zip(reversed(here.parts), reversed(root.parts), strict=False)
            moved.append((sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)), entry))
    num, entry = max(moved, key=lambda each: each[0], default=(0, None))
    return entry if num else None


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
    """A short digest of a sample's messages and media."""
    turns = [[message.role, message.content] for message in sample.messages]
    media = [[ref.kind, ref.path, ref.start_s, ref.end_s] for ref in sample.media]
    return hashlib.blake2b(json.dumps([turns, media]).encode(), digest_size=4).hexdigest()
