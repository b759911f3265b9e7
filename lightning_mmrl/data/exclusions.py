"""Decides, when a sample is first read, whether the run leaves it out; every later reader follows this decision."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from lightning_mmrl.data.samples import Samples, content_digest, samples_of
from lightning_mmrl.errors import DataError
from lightning_mmrl.files import sync, writing
from lightning_mmrl.types.records import Sample

EXCLUSIONS = "exclusions.jsonl"
OWN_KEYS = frozenset({"supervised", "system", "suffix", "prefill", "raw", "prefix", "mask_history", "pairs"})
"""Settings in which the stages of one run may differ: what a stage learns, and its prompt."""
_VERSION = 2


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
    new sample. Each decision is one more line of the file:

        {"version": 2}
        {"set": 0, "manifest": "train.jsonl", "root": "/data/emotions", "use": {"supervised": false, "num_frames": 8}}
        {"set": 0, "used": {"clip-1": "9be1c0aa"},
         "left_out": {"clip-2": {"content": "07d4f3b1", "reason": "..."}}}

    Decisions still apply after a folder was moved: if the old folder is gone, they apply to a folder of the same name.
    As long as the old folder exists, a folder elsewhere counts as another set, such as a second source.

    Args:
        path: File of the decisions; None keeps them in memory.
        decides: False on a rank that only follows decisions: it writes none, and reads again what rank 0 wrote.
    """

    def __init__(self, path: Path | None = None, *, decides: bool = True) -> None:
        self.path = path
        self.decides = decides
        self._sets: list[dict[str, Any]] = []
        self._num_bytes = 0
        self._unsynced = decides

    def flush(self) -> None:
        """Waits until a loss of power cannot take away what was decided, in any thread.

        Called before anything is kept that rests on the decisions.

        Raises:
            DiskError: The disk refuses.
        """
        if not self._unsynced or self.path is None or not self.path.exists():
            return
        self._unsynced = False  # another thread may decide meanwhile, and then this is True again
        try:
            with writing(self.path):
                sync(self.path)
                sync(self.path.parent)
        except BaseException:
            self._unsynced = True
            raise

    def decided(self, which: DecidedSet, samples: Sequence[Sample]) -> dict[str, str | None]:
        """Maps sample ids to the reason for leaving the sample out, or None if it is used; undecided ids are absent.

        Raises:
            DataError: The file is damaged.
        """
        entry = _entry_of(self._read(), which)
        return {} if entry is None else _decisions(entry, samples)

    def void(self, which: DecidedSet, samples: Sequence[Sample]) -> str | None:
        """Returns why earlier decisions about these samples do not apply to the set; None if they apply or none exist.

        Stages that differ in `OWN_KEYS` have separate decisions, which leave each other as they are.

        Raises:
            DataError: The file is damaged.
        """
        sets = self._read()
        if _entry_of(sets, which) is not None:
            return None
        for entry in reversed(sets):
            use = entry["use"]
            is_other = any(use.get(key) != which.use.get(key) for key in OWN_KEYS)
            if is_other or entry["manifest"] != which.manifest or not _decisions(entry, samples):
                continue
            changed = [key for key in {**use, **which.use} if use.get(key) != which.use.get(key)]
            where = "is still there" if Path(entry["root"]).exists() else "had another name"
            cause = f"another {', '.join(changed)}" if changed else f"the media of {entry['root']}, which {where}"
            return f"{self.path} holds decisions made with {cause}; which samples are left out is decided anew"
        return None

    def decide(self, which: DecidedSet, samples: Sequence[Sample], reasons: Mapping[str, str]) -> None:
        """Saves decisions about undecided samples: samples with a reason are left out, the others are used.

        A rank that only follows keeps them in memory.

        Raises:
            DataError: The file is damaged.
            DiskError: The disk refuses; the file holds what it held before.
        """
        sets, root = self._read(), str(which.root.resolve())
        entry, news = _entry_of(sets, which), []
        if entry is None:
            entry = {"manifest": which.manifest, "root": root, "use": dict(which.use), "used": {}, "left_out": {}}
        number = next((place for place, each in enumerate(sets) if each is entry), len(sets))
        if number == len(sets):
            news.append({"set": number, **{key: entry[key] for key in ("manifest", "root", "use")}})
        elif entry["root"] != root:
            news.append({"set": number, "root": root})
        used = {each.id: content_digest(each) for each in samples if each.id not in reasons}
        left_out = {
            each.id: {"content": content_digest(each), "reason": reasons[each.id]}
            for each in samples
            if each.id in reasons
        }
        news.append({"set": number, "used": used, "left_out": left_out})
        if self.path is not None and self.decides:
            self._append(news, durable=bool(left_out))
        if number == len(sets):
            sets.append(entry)
        entry["root"] = root
        entry["used"].update(used)
        entry["left_out"].update(left_out)

    def _append(self, news: Sequence[Mapping[str, Any]], *, durable: bool) -> None:
        """Adds lines. A run that is killed here keeps the earlier decisions: half a line is cut off by the next one."""
        assert self.path is not None
        lines = [*([] if self._num_bytes else [{"version": _VERSION}]), *news]
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self.path.exists() else "wb") as file:
                file.truncate(self._num_bytes)
                file.seek(self._num_bytes)
                file.write(content)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
        self._num_bytes += len(content)
        self._unsynced = True

    def _read(self) -> list[dict[str, Any]]:
        """The decisions so far; what was added to the file since the last call is read, except half a line."""
        if self.path is None or not self.path.exists():
            return self._sets
        try:
            with self.path.open("rb") as file:
                file.seek(self._num_bytes)
                content = file.read()
            lines = content.split(b"\n")[:-1]
            for number, line in enumerate(lines):
                self._take(json.loads(line), first=not self._num_bytes and number == 0)
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise DataError(
                f"{self.path} cannot be read ({error}); it says which samples this run leaves out: restore it, or set "
                "a new run_name"
            ) from error
        self._num_bytes += sum(len(line) + 1 for line in lines)
        return self._sets

    def _take(self, line: Mapping[str, Any], *, first: bool) -> None:
        """Applies one line of the file."""
        if first:
            if line["version"] != _VERSION:
                raise ValueError(f"version {line['version']}")
            return
        if line["set"] == len(self._sets):
            self._sets.append({"manifest": line["manifest"], "use": line["use"], "used": {}, "left_out": {}})
        entry = self._sets[line["set"]]
        entry["root"] = line.get("root", entry.get("root"))
        entry["used"].update(line.get("used", {}))
        entry["left_out"].update(line.get("left_out", {}))


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


def _contents(samples: Samples, row: int, use: Mapping[str, Any]) -> Iterator[str]:
    """The digests that a decision about a sample may have; before stages learned pairs, they were no part of it."""
    yield samples.content(row)
    if "pairs" not in use:
        yield content_digest(samples[row], with_pair=False)


def _decisions(entry: Mapping[str, Any], samples: Sequence[Sample]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    known, used, left_out_before = samples_of(samples), entry["used"], entry["left_out"]
    few = len(samples) < len(used) + len(left_out_before)  # as when a batch asks, among all decisions so far
    for name, row in known.rows_of(known.ids() if few else {**used, **left_out_before}).items():
        decided = {used[name]: None} if name in used else {}
        if (left_out := left_out_before.get(name)) is not None:
            decided[left_out["content"]] = left_out["reason"]
        contents = _contents(known, row, entry["use"]) if decided else ()
        content = next((each for each in contents if each in decided), None)
        if content is not None:
            found[name] = decided[content]
    return found
