"""How many bytes of tensors are alive at most while something runs, on any device and without a profiler."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, until they are freed, on top of those given at the start.

    Attributes:
        peak: The most bytes at once.
    """

    def __init__(self, tensors):
        super().__init__()
        self.peak = self._now = 0
        self._known = {}
        for tensor in tensors:
            self._add(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Runs an operation and notes what it returns."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor)
        return result

    def _add(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = weakref.finalize(storage, self._free, key, size)
        self._now += size
        self.peak = max(self.peak, self._now)

    def _free(self, key, size):
        self._known.pop(key, None)
        self._now -= size
