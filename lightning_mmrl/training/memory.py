"""Memory that nothing uses any more."""

import ctypes
import gc
import platform

import torch


def free_memory() -> None:
    """Frees what a finished stage or evaluation left: its trainer, module and optimizers refer to each other.

    Every rank calls it before it builds the next model.
    """
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # the C library keeps freed memory of the host for later use otherwise
