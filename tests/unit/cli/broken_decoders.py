"""Decoder checks that fail in every way, in a module of their own that spawned workers can import."""

import os
import signal

from lightning_mmrl.errors import MediaError


def run(item):
    name, _ = item
    if name == "decord":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        while True:
            pass
    if name == "av":
        os._exit(9)
    if name == "soundfile":
        raise MediaError("no such codec")
    return f"{name} works"
