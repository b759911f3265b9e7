"""Keeps the console free of decoder messages: FFmpeg, mpg123, libtiff and decord write to standard error."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from multiprocessing import parent_process
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_STDERR = 2


def quietly(function: Callable[P, T]) -> Callable[P, T]:
    """Discards everything that a function, and the C libraries that it calls, write to standard error.

    The exceptions of the function already say what went wrong, in one sentence that names the file. Most of these
    libraries cannot be silenced in another way. The redirection affects the whole process, so it happens only in
    workers, where nothing else writes: a process that trains would lose messages of its other threads.
    """

    @wraps(function)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> T:
        with nullcontext() if parent_process() is None else _silence():
            return function(*args, **kwargs)

    return quiet


@contextmanager
def _silence() -> Iterator[None]:
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        kept = os.dup(_STDERR)
    except OSError:  # the parent process closed it, so there is nothing to redirect
        kept = None
    if kept is None:
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, _STDERR)
        finally:
            os.close(nowhere)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)
