"""Names the owner of a file or folder that this user may not use."""

import os
import pwd
import stat
from pathlib import Path


def denied(path: Path) -> tuple[str, str] | None:
    """Returns the problem as a clause with owner and mode, and the remedy; None if owner and mode cannot be read."""
    path = path.absolute()
    closed = (each for each in path.parents[::-1] if each.is_dir() and not os.access(each, os.X_OK, effective_ids=True))
    # The topmost folder that cannot be searched; without one, the file, or its folder if there is no file.
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
