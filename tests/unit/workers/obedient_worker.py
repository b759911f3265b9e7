"""What a worker is told to do; a module of its own, so that spawned workers can import it."""

import os
import time
from operator import truediv

from lightning_mmrl.errors import DataError


def act(order):
    """Does what the item says."""
    verb, argument = order
    if verb == "sleep":
        time.sleep(argument)
    if verb == "refuse":
        raise DataError(argument)
    if verb == "divide":
        return truediv(1, argument)
    if verb == "exit":
        os._exit(argument)
    if verb == "big":
        return bytes(argument)
    if verb == "closure":
        return lambda: argument
    return (argument, os.getpid())
