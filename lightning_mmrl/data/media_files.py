"""Finds the file that a path of a manifest names, below the media root and nowhere else."""

import os
import re
import stat
from pathlib import Path, PurePosixPath

from lightning_mmrl.data.formats.lines import LineError
from lightning_mmrl.data.formats.turns import quoted

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[\\/]")


def resolve_media(path: str, media_root: Path, place: str) -> Path:
    """Returns the file that a manifest path names, with all links resolved.

    A caller that opens the returned path therefore opens the file that was checked here.

    Raises:
        DataError: The path is absolute, has a scheme or `..`, leads out of `media_root` through a link, or is no file.
    """
    try:
        return _real_file(path, media_root)
    except LineError as error:
        raise LineError(error.group, error.reason, place) from error


class MediaFolder:
    """Checks paths as `resolve_media` does; a folder is resolved once for all of its files.

    Args:
        folder: The media root.
    """

    def __init__(self, folder: Path) -> None:
        self._root = folder
        self._folders: dict[str, str] = {}

    def check(self, path: str) -> None:
        """Checks one path.

        Raises:
            LineError: See `resolve_media`.
        """
        folder, _, name = path.rpartition("/")
        known = self._folders.get(folder)
        plain = name not in ("", ".", "..") and not any(mark in name for mark in "\\:~")
        if known is not None and plain:
            try:
                if stat.S_ISREG(os.lstat(f"{known}/{name}").st_mode):  # a file, and no link
                    return
            except (OSError, ValueError):
                pass  # refused below, in words
        real = _real_file(path, self._root)
        if os.path.basename(real) == name and not os.path.islink(self._root / path):
            self._folders[folder] = str(real.parent)


def _real_file(path: str, media_root: Path) -> Path:
    """Resolves a path; it is checked as text first, so that nothing outside the root is accessed."""
    pure = PurePosixPath(path)
    climbs = ".." in pure.parts or ".." in path.replace("\\", "/").split("/")
    if not path or "\0" in path or "://" in path or _SCHEME.match(path) or climbs or path[0] in "/~\\":
        raise LineError(
            "outside media_root",
            f"media path {quoted(path)} must be relative to media_root {media_root}, without '..', '~' or a scheme",
        )
    try:
        real = (media_root / path).resolve()
        inside = real.is_relative_to(media_root.resolve())
        exists = inside and real.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a lone surrogate, a loop of links
        why = getattr(error, "strerror", None) or type(error).__name__
        reason = f"media path {quoted(path)} is no file name ({why}); rename the file"
        raise LineError("missing file", reason) from error
    if not inside:
        raise LineError(
            "outside media_root",
            f"media path {quoted(path)} leads out of media_root {media_root}; copy the file below it",
        )
    if not exists:
        raise LineError(
            "missing file",
            f"media file {quoted(path)} does not exist in {media_root} or is no regular file; add it or drop the line",
        )
    return real
