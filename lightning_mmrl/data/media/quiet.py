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
    to be silenced. The redirection is the whole process's: for decode workers, and processes that decode in one thread.
    """

    @wraps(function)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> T:
        with _silence():
            return function(*args, **kwargs)

    return quiet


@contextmanager
def _silence() -> Iterator[None]:
    if sys.stderr is None:  # closed by whoever started the process: nothing to keep clean
        yield
        return
    sys.stderr.flush()
    kept = os.dup(_STDERR)
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


_STDERR = 2
