"""Finds the file that a CSV cell names, whatever separators, accents or absolute paths the cell uses."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lightning_mmrl.data.media_files import resolve_media
from lightning_mmrl.data.schema import LineError


class ClipFolder:
    r"""The folder of the clips; finds a file by the name that a CSV gives it.

    A name is used unchanged if such a file exists. If not, backslashes are read as separators, an absolute path into
    the folder is made relative to it, and Unicode forms are compared: macOS writes an accented letter as two
    characters (NFD), other systems as one (NFC).

    Args:
        root: The folder; no file outside it is found.
        suffix: Appended to names without a suffix, such as ".mp4".

    Attributes:
        real: The folder with all links resolved.
    """

    def __init__(self, root: Path, suffix: str = "") -> None:
        self._root = root
        self.real = root.resolve()
        self._suffix = suffix
        self._listed: dict[Path, dict[str, str | None]] = {}

    def find(self, name: str) -> Path:
        """The resolved path of the file that `name` means.

        Raises:
            LineError: No file of the folder has this name; the reason that is given applies to the unchanged name.
        """
        refusal: LineError | None = None
        for reading in self._readings(name):
            try:
                return resolve_media(reading, self._root, f"file {name}")
            except LineError as error:
                refusal = refusal or error
        assert refusal is not None  # the first reading is the unchanged name
        raise refusal

    def _readings(self, name: str) -> Iterator[str]:
        """Yields the unchanged name, then the other names that it may stand for."""
        slashed = name.replace("\\", "/")
        name, slashed = (
            each if PurePosixPath(each).suffix or not self._suffix else each + self._suffix for each in (name, slashed)
        )
        yield name
        if slashed != name:
            yield slashed
        below, path = slashed, PurePosixPath(slashed)
        for root in (os.path.abspath(self._root), self.real):
            if path.is_absolute() and path.is_relative_to(root):
                below = path.relative_to(root).as_posix()
                yield below
                break
        spelled = self._spelled(below)
        if spelled is not None:
            yield spelled

    def _spelled(self, name: str) -> str | None:
        """The name in the Unicode form of the existing files; None if no file matches, or several do."""
        parts, folder = [], self.real
        for part in PurePosixPath(name).parts:
            # Folders outside the root are never listed.
            if part in ("/", "..") or not folder.resolve().is_relative_to(self.real):
                return None
            names = self._names(folder)
            found = names.get(part) or names.get(unicodedata.normalize("NFC", part))
            if found is None:
                return None
            parts.append(found)
            folder = folder / found
        return "/".join(parts)

    def _names(self, folder: Path) -> dict[str, str | None]:
        """The folder's files by their own name and by its NFC form; None for a form that several files share."""
        if folder not in self._listed:
            # An unreadable folder has no names to compare; the error about the unchanged name tells the user.
            real = os.listdir(folder) if folder.is_dir() and os.access(folder, os.R_OK) else []
            forms: dict[str, str | None] = {}
            for name in real:
                form = unicodedata.normalize("NFC", name)
                forms[form] = None if form in forms else name
            self._listed[folder] = {**forms, **{name: name for name in real}}
        return self._listed[folder]
