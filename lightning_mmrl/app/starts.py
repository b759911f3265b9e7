"""Records each start of a run: the commit of this package and the versions of what it computes with."""

import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

from lightning_mmrl import __version__
from lightning_mmrl.files import dispensable
from lightning_mmrl.tracking.jsonl import append_lines

FILE = "starts.jsonl"
PACKAGES = ("torch", "transformers", "lightning", "peft")
CHECKOUT = Path(__file__).parents[2]
PACKAGE = Path(__file__).parents[1].name
_LONGEST_S = 10.0


def note_start(directory: Path) -> None:
    """Appends a line to `starts.jsonl` of a run folder; the run goes on without one that the disk refuses."""
    with dispensable("lines of starts.jsonl", directory):
        directory.mkdir(parents=True, exist_ok=True)
        append_lines(directory / FILE, [{"time": time.time(), "commit": commit_of(CHECKOUT), "versions": versions()}])


def versions() -> dict[str, str]:
    """The versions of this package, of Python and of what a run computes with."""
    return {"lightning_mmrl": __version__, "python": platform.python_version()} | {
        name: version(name) for name in PACKAGES
    }


def branch_of(checkout: Path) -> str | None:
    """The branch that is checked out; None on none, or where there is no git."""
    return _git(checkout, "branch", "--show-current") or None


def commit_of(checkout: Path) -> str | None:
    """The commit that a folder is a checkout of, with `+changes` if its code differs; None if it is no checkout.

    The code differs if any file that git tracks does, or if the package has a Python file that git does not track.

    A folder within a checkout of something else, such as an installed package, is none.
    """
    if _git(checkout, "rev-parse", "--show-toplevel") != str(checkout.resolve()):
        return None
    commit, changed = _git(checkout, "rev-parse", "HEAD"), _git(checkout, "status", "--porcelain", "-uno")
    new = _git(checkout, "ls-files", "--others", "--exclude-standard", "--", f"{PACKAGE}/*.py")
    return f"{commit}+changes" if commit and (changed or new) else commit


def _git(folder: Path, *arguments: str) -> str | None:
    """The answer of git; None if there is no git, or if it complains or hangs."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_LONGEST_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
