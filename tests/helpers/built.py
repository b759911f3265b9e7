"""Tiny checkpoints that many tests start from: built once in a process, and copied for each test or module."""

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_MASTERS: dict[str, TemporaryDirectory[str]] = {}


def copy(build: Callable[..., Path], directory: Path, **sizes: Any) -> Path:
    """A checkpoint as `build(directory, **sizes)` writes it; the builder's fields and the sizes decide all of it.

    The folder that copies are taken from is removed when the process ends.
    """
    key = f"{build!r} {sizes!r}"
    if key not in _MASTERS:
        folder = TemporaryDirectory(prefix="tiny-")
        build(Path(folder.name) / "model", **sizes)
        _MASTERS[key] = folder
    shutil.copytree(Path(_MASTERS[key].name) / "model", directory, dirs_exist_ok=True)
    return directory
