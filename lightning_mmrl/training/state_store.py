"""Numbered states of an unfinished stage on disk: each whole or not there, the last good one always kept."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.errors import StageError
from lightning_mmrl.files import follow_umask, write_whole, writing
from lightning_mmrl.settings.rules import check_rules
from lightning_mmrl.settings.run import StateSettings

MANIFEST = "MANIFEST.json"
LATEST = "LATEST"
VERSION = 1
_PREFIX = "step-"
_PARTIAL = ".partial"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredState:
    """A state whose files are all there and have the hashes they were written with.

    Attributes:
        step: Steps of the stage that are behind it.
        folder: Where it lies.
        facts: What was said of it when it was saved.
    """

    step: int
    folder: Path
    facts: Mapping[str, Any]


class StateStore:
    """Saves and finds the states of one stage.

    A state is written into a folder beside its place, every file is hashed and flushed to the disk, then the folder is
    renamed, then `LATEST` names it, and only then is an older one removed. A process that is killed at any moment
    leaves the newest whole state readable; what it left half-written is ignored, and removed by the next save.
    Lightning's own save stages in the system's folder for temporary files and loses the previous checkpoint if that is
    another filesystem (Lightning-AI/pytorch-lightning#21253).

    Args:
        directory: `state/` of the stage.
        settings: How many states are kept.
        check: Looks into a state whose files are whole before it is gone on from; a ValueError says what is wrong.

    Raises:
        ConfigError: No state would be kept.
    """

    def __init__(
        self,
        directory: Path,
        *,
        settings: StateSettings | None = None,
        check: Callable[[StoredState], None] = lambda state: None,
    ) -> None:
        self._settings = settings or StateSettings()
        check_rules(self._settings, "state")
        self.directory = directory
        self._check = check

    def begin(self, step: int) -> Path:
        """An empty folder for the files of a state that is not one yet; `commit` makes it one.

        Raises:
            OSError: The disk refuses.
        """
        self.clear_partial()  # its space may be what this state needs
        partial = self.partial(step)
        partial.mkdir(parents=True)
        return partial

    def clear_partial(self) -> None:
        """Removes what was begun and never became a state, so that its space is free again."""
        for partial in self.directory.glob(f"*{_PARTIAL}"):
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)

    def partial(self, step: int) -> Path:
        """The folder that `begin` makes."""
        return self._place(step).with_suffix(_PARTIAL)

    def commit(self, step: int, facts: Mapping[str, Any]) -> Path:
        """Makes the files that were written since `begin` a state, and removes the oldest beyond `keep`.

        Raises:
            OSError: The disk refuses; the states before it are as they were.
        """
        place, partial = self._place(step), self.partial(step)
        files = {str(path.relative_to(partial)): _seal(path) for path in _files(partial)}
        content = {"version": VERSION, "step": step, "facts": dict(facts), "files": files}
        with writing(partial):
            (partial / MANIFEST).write_text(json.dumps(content, indent=1), encoding="utf-8")
            follow_umask(partial)
        sync_tree(partial)
        if place.exists():  # found damaged, else the stage would have gone on behind it; a rename does not replace it
            shutil.rmtree(place)
        partial.rename(place)
        sync(self.directory)
        write_whole(self.directory / LATEST, place.name)
        sync(self.directory)
        self._prune(newest=step)
        return place

    def latest(self) -> StoredState | None:
        """The newest state that is whole and passes the check; None if there never was one.

        What is damaged is named in the log.

        Raises:
            StageError: There are states, and none of them is whole.
            PermissionError: The newest one may not be read by this user.
        """
        damaged = []
        for place in self._states():
            try:
                found = _verified(place)
                self._check(found)
                return found
            except PermissionError:
                raise  # a state of another user is not damaged, and an older one is no substitute for it
            except (OSError, ValueError, KeyError, TypeError) as error:
                damaged.append(f"{place.name} ({error})")
                _log.warning("State %s is damaged and is passed over: %s", place, error)
        if damaged:
            raise StageError(
                f"none of the states in {self.directory} is whole: {'; '.join(damaged)}; restore one of them, or "
                "remove the folder to train the stage from its start"
            )
        return None

    def newest_step(self) -> int | None:
        """The step of the newest state, damaged or not; None without one."""
        return next((int(place.name.removeprefix(_PREFIX)) for place in self._states()), None)

    def num_bytes(self, step: int) -> int:
        """The size of the state of a step."""
        return sum(path.stat().st_size for path in _files(self._place(step)))

    def _place(self, step: int) -> Path:
        return self.directory / f"{_PREFIX}{step:08d}"

    def _states(self) -> list[Path]:
        """Newest first."""
        found = (path for path in self.directory.glob(f"{_PREFIX}*") if path.suffix != _PARTIAL)
        return sorted(found, reverse=True)

    def _prune(self, newest: int) -> None:
        """Removes older states beyond `keep`, and later ones: the stage went on before them, so they were passed over.

        One of these would otherwise be the newest, and take the place of a good one among those that are kept.
        """
        up_to_newest = [place for place in self._states() if place.name <= self._place(newest).name]
        for place in {*self._states()} - {*up_to_newest[: self._settings.keep]}:
            place.rename(place.with_suffix(_PARTIAL))
        self.clear_partial()


def _verified(place: Path) -> StoredState:
    content = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']}, this program reads version {VERSION}")
    found = {str(path.relative_to(place)): path for path in _files(place)}
    for name in found.keys() - content["files"].keys() - {MANIFEST}:
        raise ValueError(f"{name} was not written with it")
    for name, expected in content["files"].items():
        path = found.get(name)
        if path is None or path.is_symlink():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != expected["bytes"]:
            raise ValueError(f"{name} has {path.stat().st_size} bytes, {expected['bytes']} were written")
        if _digest(path) != expected["sha256"]:
            raise ValueError(f"{name} is not what was written")
    return StoredState(step=content["step"], folder=place, facts=content["facts"])


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _seal(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_tree(folder: Path) -> None:
    """Flushes a folder and all below it to the disk.

    Raises:
        OSError: The disk refuses.
    """
    for path in [*sorted(folder.rglob("*")), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk.

    Raises:
        OSError: The disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
