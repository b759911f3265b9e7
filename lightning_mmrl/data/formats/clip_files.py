"""The files that the cells of a CSV name, as people and other systems write names: separators, accents, whole paths."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lightning_mmrl.data.schema import LineError, resolve_media


class ClipFolder:
    r"""The folder of the clips; finds a file by the name that a CSV gives it.

    A name is taken as it stands if such a file exists. If not, backslashes are read as separators, a path that begins
    with the folder's own is taken relative to it, and accents are compared as characters: macOS writes an accented
    letter as two characters (NFD), others as one (NFC).

    Args:
        root: The folder; nothing outside of it is found.
        suffix: Appended to names that have none, such as ".mp4".

    Attributes:
        real: The folder, free of links.
    """

    def __init__(self, root: Path, suffix: str = "") -> None:
        self._root = root
        self.real = root.resolve()
        self._suffix = suffix
        self._listed: dict[Path, dict[str, str | None]] = {}

    def find(self, name: str) -> Path:
        """The real file that `name` means.

        Raises:
            LineError: No file of the folder has this name; says why of the name as it stands.
        """
        refusal: LineError | None = None
        for reading in self._readings(name):
            try:
                return resolve_media(reading, self._root, f"file {name}")
            except LineError as error:
                refusal = refusal or error
        assert refusal is not None  # there is at least the name as it stands
        raise refusal

    def _readings(self, name: str) -> Iterator[str]:
        """The name as it stands, then what else it may mean."""
        slashed = name.replace("\\", "/")
        name, slashed = self._completed(name), self._completed(slashed)
        yield name
        if slashed != name:
            yield slashed
        below = self._below(slashed)
        if below != slashed:
            yield below
        spelled = self._spelled(below)
        if spelled is not None:
            yield spelled

    def _completed(self, name: str) -> str:
        return name if PurePosixPath(name).suffix or not self._suffix else name + self._suffix

    def _below(self, name: str) -> str:
        """An absolute path into the folder, made relative to it; any other name as it is."""
        path = PurePosixPath(name)
        for root in (os.path.abspath(self._root), self.real):
            if path.is_absolute() and path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return name

    def _spelled(self, name: str) -> str | None:
        """The name in the characters of the files that there are, None if none is the same or two are."""
        parts, folder = [], self.real
        for part in PurePosixPath(name).parts:
            # Nothing outside of the root is looked at.
            if part in ("/", "..") or not folder.resolve().is_relative_to(self.real):
                return None
            names = self._names(folder)
            found = names.get(part) or names.get(_composed(part))
            if found is None:
                return None
            parts.append(found)
            folder = folder / found
        return "/".join(parts)

    def _names(self, folder: Path) -> dict[str, str | None]:
        """The folder's files, by name as it is and by its composed form; None for a form that several have."""
        if folder not in self._listed:
            # A folder that may not be read offers no names to compare; the refusal of the name as it stands says so.
            real = os.listdir(folder) if folder.is_dir() and os.access(folder, os.R_OK) else []
            forms: dict[str, str | None] = {}
            for name in real:
                form = _composed(name)
                forms[form] = None if form in forms else name
            self._listed[folder] = {**forms, **{name: name for name in real}}
        return self._listed[folder]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
