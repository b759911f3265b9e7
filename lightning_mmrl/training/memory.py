"""Memory of a device that nothing uses any more."""

import gc

import torch


def free_memory() -> None:
    """Frees what a finished stage or evaluation left: its trainer, module and optimizers refer to each other.

    Every rank calls it before it builds the next model.
    """
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
