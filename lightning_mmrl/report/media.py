"""Media of the groups that a page shows, in a folder beside it: frames, outlines of sounds, and copies to play."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lightning_mmrl.data.media.examine import Guard
from lightning_mmrl.data.media_files import resolve_media
from lightning_mmrl.data.sheet import Thumbnail, thumbnail
from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.files import folder_beside, writing
from lightning_mmrl.report.markup import visible
from lightning_mmrl.report.rollouts import Shown, spread
from lightning_mmrl.report.run_files import RunFiles
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef

NUM_FRAMES = 6
MOST_GROUPS = 200
"""Groups of a run whose media are decoded, evenly chosen; another group shows what it has in common with them."""
MOST_OF_A_GROUP = 8
"""Media of a group that are decoded; the others are named."""
MOST_FILE_BYTES = 20 * 2**20
"""Size of a file that is copied; the frames of a larger one are shown all the same."""
MOST_BYTES = 200 * 2**20
"""Size of all copies together."""
PLAYED = {"video": (".mp4", ".m4v", ".webm"), "audio": (".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a")}
"""Ends of names, by kind, of files that browsers play."""
MARKER = ".mmrl-report-media"
"""File in every folder of media that a page came with; a folder without it belongs to the user."""
HEIGHT = 80
"""Height of the outline of a sound, in the units of its picture."""


@dataclass(kw_only=True)
class MediaFolder:
    """Fills the folder beside a page.

    Attributes:
        root: Folder in which media are searched for first; None: only the folders of the configuration.
        on_progress: Gets the number of media that are decoded, and of all.
    """

    root: Path | None = None
    on_progress: Callable[[int, int], None] = lambda done, total: None
    _copied: dict[Path, str | None] = field(default_factory=dict)
    _num_bytes: int = 0

    def fill(self, folder: Path, runs: Sequence[RunFiles], shown: Sequence[Shown]) -> None:
        """Decodes the media of groups, writes the folder, and adds to all groups where their media lie.

        A medium that is not found or cannot be decoded is shown by its error.

        Raises:
            ConfigError: The folder has files and no page came with it.
            DiskError: The disk refuses; the folder is as it was before.
        """
        _refuse_others(folder)
        with writing(folder), folder_beside(folder) as temporary:
            place = quote(os.fsencode(folder.name), safe="")
            for number, run in enumerate(runs):
                self._of_run(run, [each for each in shown if each.values["run"] == number], temporary, place)
            (temporary / MARKER).write_text("The next `mmrl report --media` for this page replaces this folder.\n")
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)

    def _of_run(self, run: RunFiles, shown: Sequence[Shown], folder: Path, address: str) -> None:
        own = [] if self.root is None else [self.root]
        roots: list[Path] = list(dict.fromkeys([*own, *_roots(run.settings)]))
        chosen = [shown[place] for place in spread(len(shown), MOST_GROUPS)]
        refs = dict.fromkeys(ref for each in chosen for ref in each.row.sample.media[:MOST_OF_A_GROUP])
        found = {ref: _located(ref, roots) for ref in refs}
        facts: dict[MediaRef, dict[str, Any]] = {
            ref: {"error": place} for ref, place in found.items() if isinstance(place, str)
        }
        for root in roots:
            here = [(place[1], ref) for ref, place in found.items() if not isinstance(place, str) and place[0] == root]
            guard = Guard(settings=MediaSettings(num_frames=NUM_FRAMES))
            outcomes = guard.run(thumbnail, here, root, self.on_progress) if here else []
            for (path, ref), outcome in zip(here, outcomes, strict=True):
                if outcome.error is not None:
                    facts[ref] = {"error": visible(outcome.error)}
                else:
                    facts[ref] = self._laid(path, ref, outcome.value, folder, address)
        paths = {place[1] for place in found.values() if not isinstance(place, str)}
        num_left_out = sum(self._copied.get(path, "") is None for path in paths)
        if num_left_out:
            run.missing.append(f"{num_left_out} media files are too large to be copied beside the page.")
        for each in shown:
            for values, ref in zip(each.values["media"], each.row.sample.media, strict=True):
                values.update(facts.get(ref, {"caption": "not decoded for this page"}))

    def _laid(self, path: Path, ref: MediaRef, seen: Thumbnail, folder: Path, address: str) -> dict[str, Any]:
        """Writes the frames and the copy of a medium, and returns what the page says of it."""
        mark = hashlib.sha256(f"{path}\0{ref.start_s}\0{ref.end_s}".encode("utf-8", "backslashreplace")).hexdigest()[
            :16
        ]
        frames = []
        for number, picture in enumerate(seen.pictures):
            file = f"{mark}-{number}.jpg"
            (folder / file).write_bytes(picture)
            frames.append(f"{address}/{file}")
        wave = "".join(
            f"M{column} {HEIGHT / 2 - 38 * high:.1f}V{HEIGHT / 2 + 1 - 38 * low:.1f}"
            for column, (low, high) in enumerate(seen.outline)
        )
        facts = {
            "frames": frames,
            "caption": seen.caption,
            "wave": wave,
            "columns": len(seen.outline),
            "kind": ref.kind,
        }
        played = self._copy(path, ref, folder)
        return facts if played is None else {**facts, "play": f"{address}/{played}", "from": ref.start_s or 0}

    def _copy(self, path: Path, ref: MediaRef, folder: Path) -> str | None:
        """Copies a file that a browser plays, and returns its name; None if it is no such file or too large."""
        ending = path.suffix.lower()
        if ending not in PLAYED.get(ref.kind, ()):
            return None
        if path not in self._copied:
            size = path.stat().st_size
            fits = size <= MOST_FILE_BYTES and self._num_bytes + size <= MOST_BYTES
            file = f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}{ending}"
            if fits:
                shutil.copyfile(path, folder / file)
                self._num_bytes += size
            self._copied[path] = file if fits else None
        return self._copied[path]


def _refuse_others(folder: Path) -> None:
    """Refuses to replace anything but a folder that is empty or that an earlier page came with.

    Raises:
        ConfigError: It is a file, a link, or a folder with files and without the marker.
    """
    if not folder.is_symlink() and not folder.exists():
        return
    ours = folder.is_dir() and not folder.is_symlink() and ((folder / MARKER).is_file() or not any(folder.iterdir()))
    if not ours:
        raise ConfigError(
            f"{folder} would be replaced by the media of the page, and `mmrl report` did not write it; move it away, "
            "or name another page with --out"
        )


def _located(ref: MediaRef, roots: Sequence[Path]) -> tuple[Path, Path] | str:
    """The root below which a medium lies and its file, or why there is none."""
    reason = "the configuration names no folder of media; give --media-root"
    for root in roots:
        try:
            return root, resolve_media(ref.path, root, ref.path)
        except DataError as error:
            reason = visible(f"{error}; give --media-root if it lies elsewhere")
    return reason


def _roots(settings: Mapping[str, Any]) -> Iterator[Path]:
    """Every folder of media or data that a configuration names, folders of media first."""
    for key in ("media_root", "root"):
        yield from (Path(value) for value in _values(settings, key, set()) if Path(value).is_dir())


def _values(node: Any, wanted: str, seen: set[int]) -> Iterator[str]:
    """The texts at a key, however deep; a node that aliases repeat is visited once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    children = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        if key == wanted and isinstance(child, str):
            yield child
        elif isinstance(child, Mapping | list):
            yield from _values(child, wanted, seen)
