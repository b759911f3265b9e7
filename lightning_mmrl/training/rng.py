"""States of a process's random number generators, as tensors and primitives."""

from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states


def rng_state() -> dict[str, Any]:
    """The states of the global generators of Python, NumPy and torch, and of every CUDA device.

    >>> import random
    >>> state, first = rng_state(), random.random()
    >>> restore_rng(state)
    >>> random.random() == first
    True
    """
    state = _collect_rng_states()
    kind, keys, *rest = state["numpy"]
    return {**state, "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest]}


def restore_rng(state: dict[str, Any]) -> None:
    """Sets the generators to a state that `rng_state` returned."""
    kind, keys, *rest = state["numpy"]
    _set_rng_states({**state, "numpy": (kind, keys.numpy().astype(np.uint32), *rest)})
