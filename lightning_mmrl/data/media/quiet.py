"""Keeps decoders' own words off the console: FFmpeg, mpg123, libtiff and decord write to standard error."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def quietly(function: Callable[P, T]) -> Callable[P, T]:
    """The same function; what it and the C libraries below it write to standard error while it runs goes nowhere.

    Its exceptions say what went wrong, in one sentence with the file's name. Most of these libraries offer no other way
    to be silenced. The redirection is the whole process's: use it in decode workers alone, where nobody else writes.
    """

    @wraps(function)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> T:
        with _silence():
            return function(*args, **kwargs)

    return quiet


@contextmanager
def _silence() -> Iterator[None]:
    if sys.stderr is not None:
        sys.stderr.flush()
    kept = _copy_of_stderr()
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


def _copy_of_stderr() -> int | None:
    """None if whoever started the process closed it: there is nothing to keep clean."""
    try:
        return os.dup(_STDERR)
    except OSError:
        return None


_STDERR = 2
