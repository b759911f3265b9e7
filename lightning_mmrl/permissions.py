"""Whose a file is that this user may not use, in words."""

import os
import pwd
import stat
from pathlib import Path


def denied(path: Path) -> tuple[str, str] | None:
    """The problem (whose a file or folder is, and its mode) as a clause, and the remedy; None if it cannot be seen."""
    path = path.absolute()
    blocked = _first_blocked(path)
    try:
        status = blocked.stat()
    except OSError:
        return None
    owner, mode = _user(status.st_uid), stat.S_IMODE(status.st_mode)
    where = f"{path}" if blocked == path else f"{path}: the folder {blocked}"
    kind = "rX" if stat.S_ISDIR(status.st_mode) else "r"
    return (
        f"{where} belongs to {owner} and has mode {mode:04o}, and {_user(os.geteuid())} may not use it so; nothing is "
        "damaged",
        f"{owner} can share it by chmod -R g+{kind} {blocked} (g+w to write there, and umask 002 for what is to come), "
        "or choose another folder",
    )


def _first_blocked(path: Path) -> Path:
    """The topmost folder on the way to `path` that cannot be searched, else `path` or the folder it would lie in."""
    for folder in reversed(path.parents):
        if folder.is_dir() and not os.access(folder, os.X_OK, effective_ids=True):
            return folder
    return path if path.exists() else path.parent


def _user(number: int) -> str:
    try:
        return f"{pwd.getpwuid(number).pw_name} (uid {number})"
    except KeyError:
        return f"uid {number}"
