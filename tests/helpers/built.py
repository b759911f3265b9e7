"""Tiny checkpoints that many tests start from: built once in a process, and copied for each test or module."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


@cache
def _master(build: Callable[..., Path], **sizes: Any) -> TemporaryDirectory:
    """The folder that copies are taken from; it is removed when the process ends."""
    folder = TemporaryDirectory(prefix="tiny-")
    build(Path(folder.name) / "model", **sizes)
    return folder


def copy(build: Callable[..., Path], directory: Path, **sizes: Any) -> Path:
    """A checkpoint as `build(directory, **sizes)` writes it; the sizes decide all of it."""
    shutil.copytree(Path(_master(build, **sizes).name) / "model", directory, dirs_exist_ok=True)
    return directory
