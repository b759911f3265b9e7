"""Explains in words whose file it is that this user may not use."""

import os
import pwd
import stat
from pathlib import Path


def denied(path: Path) -> tuple[str, str] | None:
    """The problem as a clause (owner and mode of the file or folder), and the remedy; None if they cannot be read."""
    path = path.absolute()
    closed = (each for each in path.parents[::-1] if each.is_dir() and not os.access(each, os.X_OK, effective_ids=True))
    # The topmost folder that cannot be searched, else the file or the folder that it would lie in.
    blocked = next(closed, None) or (path if path.exists() else path.parent)
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


def _user(number: int) -> str:
    try:
        return f"{pwd.getpwuid(number).pw_name} (uid {number})"
    except KeyError:
        return f"uid {number}"
