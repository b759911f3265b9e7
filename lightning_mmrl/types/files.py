"""Files that are replaced as a whole, with the mode that their purpose asks for.

What belongs to a run or a cache follows the umask, like any file that a user makes: a group that shares a folder sets
`umask 002` and reads it all. Only a file that holds a secret is 0600; no file of a run does, because addresses are
stored without their credentials.
"""

import os
import pwd
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A new file beside `path` to write to; it takes the place of `path` at the end, and is removed on an error.

    `tempfile.mkstemp` would make it 0600, and so does safetensors (0.8) to a file that it writes.

    Args:
        path: What is replaced; its folder is made.
        durable: True to have the content on the disk before it takes its place.

    Raises:
        OSError: The disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        yield temporary
        temporary.chmod(mode)
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def follow_umask(folder: Path) -> None:
    """Gives every file below a folder the mode that a new file gets there; libraries make some of them 0600.

    Raises:
        OSError: The disk refuses.
    """
    probe = folder / f".{secrets.token_hex(4)}.tmp"
    with probe.open("xb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def refusal(error: PermissionError) -> str:
    """One sentence about a file that this user may not open: whose it is, its mode, and what to do."""
    if error.filename is None:
        return f"permission denied ({error})"
    path = Path(os.fsdecode(error.filename)).absolute()
    blocked = _first_blocked(path)
    try:
        status = blocked.stat()
    except OSError:
        return f"{path} cannot be opened ({error.strerror}), nor can {blocked.parent}; ask the owner of that folder"
    owner, mode = _user(status.st_uid), stat.S_IMODE(status.st_mode)
    where = f"{path}" if blocked == path else f"{path}: the folder {blocked}"
    kind = "rX" if stat.S_ISDIR(status.st_mode) else "r"
    return (
        f"{where} belongs to {owner} and has mode {mode:04o}, and {_user(os.geteuid())} may not use it so; nothing is "
        f"damaged: {owner} can share it by chmod -R g+{kind} {blocked} (g+w to write there, and umask 002 for what is "
        "to come), or choose another folder"
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
