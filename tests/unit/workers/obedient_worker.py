"""Tasks for a worker; a module of its own, so that spawned workers can import it."""

import os
import signal
import time
from operator import truediv
from pathlib import Path

import numpy as np

from lightning_mmrl.errors import DataError

HOARD = []
"""What this process never gives back."""


def act(order):
    """Does what the item says."""
    verb, argument = order
    if verb == "sleep":
        time.sleep(argument)
    if verb == "await":
        return appeared(argument)
    if verb == "refuse":
        raise DataError(argument)
    if verb == "divide":
        return truediv(1, argument)
    if verb == "exit":
        os._exit(argument)
    if verb == "leave":
        raise SystemExit(argument)
    if verb == "strike":
        return struck(*argument)
    if verb in MAKERS:
        return MAKERS[verb](argument)
    if verb == "closure":
        return lambda: argument
    return (argument, os.getpid())


def spin(_):
    """Works for ever."""
    while True:
        pass


def appeared(path):
    """Ends when there is such a file."""
    while not Path(path).exists():
        time.sleep(0.01)
    return "there"


def struck(counter, cause, times):
    """Dies or stops by a signal, as from outside, the first `times` times that it is called."""
    path = Path(counter)
    earlier = path.read_text() if path.exists() else ""
    if len(earlier) >= times:
        return "lived"
    path.write_text(earlier + "x")
    os.kill(os.getpid(), getattr(signal, f"SIG{cause}"))
    time.sleep(60)
    return "not struck"


def hoard(num_bytes):
    """Takes memory that it never gives back."""
    HOARD.append(b"x" * num_bytes)
    return os.getpid()


def need(num_bytes):
    """Takes memory for a moment."""
    bytearray(num_bytes)
    return os.getpid()


def disguise(num_bytes):
    """Takes memory for a moment; says something else where there is too little."""
    try:
        return need(num_bytes)
    except MemoryError:
        raise ValueError("a frame is damaged") from None


MAKERS = {"disguise": disguise, "big": bytes, "array": np.arange, "spin": spin, "hoard": hoard, "need": need}
