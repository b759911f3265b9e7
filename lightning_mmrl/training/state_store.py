"""Numbered states of an unfinished stage on disk: saved atomically, and the last good one always kept."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.errors import StageError
from lightning_mmrl.files import file_digest, follow_umask, sync, sync_tree, write_whole, writing
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
    """A state whose files are complete and have the hashes that they were written with.

    Attributes:
        step: Steps of the stage that were finished when it was saved.
        folder: Folder of the state.
        facts: The facts that were saved with it.
    """

    step: int
    folder: Path
    facts: Mapping[str, Any]


class StateStore:
    """Saves and finds the states of one stage.

    Files are written into a partial folder, hashed and flushed to the disk. Then the folder is renamed, then `LATEST`
    names it, and only then an older state is removed. If the process is killed at any moment, the newest complete state
    stays readable; a partial folder is ignored, and removed by the next save. `files.folder_beside` cannot be used
    here, because several ranks write one state, and another thread may rename it. Lightning's own save goes through the
    system's temporary folder, and loses the previous checkpoint if that folder is on another file system
    (Lightning-AI/pytorch-lightning#21253).

    Args:
        directory: `state/` of the stage.
        settings: Number of states to keep, newest first.
        check: Examines a complete state before it is resumed from; raises a ValueError that says what is wrong.
        before: Called before a state is complete, in the thread that commits it: puts on disk what the state rests on.

    Raises:
        ConfigError: No state would be kept.
    """

    def __init__(
        self,
        directory: Path,
        *,
        settings: StateSettings | None = None,
        check: Callable[[StoredState], None] = lambda state: None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings or StateSettings()
        check_rules(self._settings, "state")
        self.directory = directory
        self._check = check
        self._before = before

    def begin(self, step: int) -> Path:
        """Creates an empty partial folder for the files of a state; `commit` turns it into the state.

        Raises:
            OSError: The disk refuses.
        """
        self.clear_partial()  # the new state may need its space
        partial = self.partial(step)
        partial.mkdir(parents=True)
        return partial

    def clear_partial(self) -> None:
        """Removes partial states, so that their space is free again."""
        for partial in self.directory.glob(f"*{_PARTIAL}"):
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)

    def partial(self, step: int) -> Path:
        """The folder that `begin` makes."""
        return self._place(step).with_suffix(_PARTIAL)

    def commit(self, step: int, facts: Mapping[str, Any]) -> Path:
        """Turns the files that were written since `begin` into a state, and removes states beyond `keep`.

        States of later steps are removed as well: the stage resumed before them, so they were found damaged. Otherwise
        a damaged state would count as the newest, and take the place of a good one.

        Raises:
            OSError: The disk refuses; earlier states are unchanged.
        """
        self._before()
        place, partial = self._place(step), self.partial(step)
        files = {
            str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            for path in _files(partial)
        }
        content = {"version": VERSION, "step": step, "facts": dict(facts), "files": files}
        with writing(partial):
            (partial / MANIFEST).write_text(json.dumps(content, indent=1), encoding="utf-8")
            follow_umask(partial)
        sync_tree(partial)
        if place.exists():  # damaged, else the stage would have resumed from it; a rename does not replace it
            shutil.rmtree(place)
        partial.rename(place)
        sync(self.directory)
        write_whole(self.directory / LATEST, place.name)
        sync(self.directory)
        up_to_newest = [each for each in self._states() if each.name <= place.name]
        for surplus in {*self._states()} - {*up_to_newest[: self._settings.keep]}:
            surplus.rename(surplus.with_suffix(_PARTIAL))
        self.clear_partial()
        return place

    def latest(self) -> StoredState | None:
        """The newest state that is complete and passes the check; None if there never was one.

        A damaged state is skipped with a warning.

        Raises:
            StageError: There are states, but none of them is intact.
            PermissionError: This user may not read the newest one.
        """
        damaged = []
        for place in self._states():
            try:
                found = _verified(place)
                self._check(found)
                return found
            except PermissionError:
                raise  # the state is not damaged, so an older one must not take its place
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
        """Folders of the states, newest first."""
        found = (path for path in self.directory.glob(f"{_PREFIX}*") if path.suffix != _PARTIAL)
        return sorted(found, reverse=True)


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
        if file_digest(path) != expected["sha256"]:
            raise ValueError(f"{name} is not what was written")
    return StoredState(step=content["step"], folder=place, facts=content["facts"])


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
