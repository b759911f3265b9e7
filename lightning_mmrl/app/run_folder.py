"""The folder of a run: made, found to be writable, and kept to one process; loads no torch."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_mmrl.errors import ConfigError

LOCK = ".lock"
"""File in a run folder that the process that works there holds."""

EVALUATIONS = "evaluations"
"""Folder in a run folder of evaluations outside of the run."""


def evaluation_lock(directory: Path) -> Path:
    """The file that the process holds which evaluates in a folder."""
    return directory.with_name(f".{directory.name}.lock")


def writable(directory: Path) -> Path:
    """Creates the folder, checks that it can be written to, and returns it.

    Raises:
        ConfigError: The folder cannot be created or written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(
            f"output_dir {directory} cannot be written ({os.strerror(error.errno or 0)}); choose another output_dir"
        ) from error
    return directory


@contextmanager
def locked(lock: Path, otherwise: str = "set another run_name") -> Iterator[None]:
    """Keeps a second process out of a run folder, where it would delete the stages that the first process trains.

    Args:
        lock: File in the folder, which the process holds.
        otherwise: A way for the user not to wait for the other process.

    Raises:
        ConfigError: Another process works in it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout as error:
        raise ConfigError(
            f"run folder {lock.parent} is in use by another process; wait for it, or {otherwise}"
        ) from error
