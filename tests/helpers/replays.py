"""Recordings of a decode step in place of CUDA's captures: they repeat its operations on the same tensors.

What a CUDA graph repeats is what the device did, without a line of Python. A replay here does the same: it runs the
recorded operations again and writes their results where they were. A step that a host decides anew each time, by a
length or a new tensor, gives other results then.
"""

from contextlib import contextmanager

import torch
from device_stand_in import DeviceTensor
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lightning_mmrl.models import captured


class Recording(TorchDispatchMode):
    """The operations of what runs in its context, with arguments and results."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def repeat(self):
        """Runs all operations again; each result gets its new values at its old place."""
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            if func._schema.is_mutable:
                continue
            for old, new in zip(tensors(result), tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def signature(self):
        """Operation, numbers and tensors of each call: tensors of this recording by number, others by their place."""
        made, found = {}, []

        def known(value):
            if not isinstance(value, Tensor):
                return repr(value)
            return made.get(id(value)) or (place(value), value.shape, value.stride(), value.dtype)

        for func, args, kwargs, result in self.operations:
            found.append((str(func), tree_map(known, (args, kwargs))))
            for each in tensors(result):
                made.setdefault(id(each), f"result {len(made)}")
        return found


def tensors(tree):
    return [each for each in tree_leaves(tree) if isinstance(each, Tensor)]


def place(tensor):
    """The address of a tensor's values, also of one on the stand-in."""
    return (tensor.inner if isinstance(tensor, DeviceTensor) else tensor).data_ptr()


class Recorder:
    """Implements `Capture` with recordings; a capture computes the step, so that the first replay does nothing."""

    def __init__(self, device):
        self.recordings = []

    def warm(self, step):
        step()

    def capture(self, step):
        with Recording() as recording:
            step()
        self.recordings.append(recording)
        computed = [True]
        return lambda: computed.clear() if computed else recording.repeat()


@contextmanager
def recorded(monkeypatch, kind="cpu"):
    """Has steps on a kind of device recorded and replayed; yields the recorders, one for each decoding."""
    made = []

    def make(device):
        made.append(Recorder(device))
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(captured, "CAPTURES", {torch.device(kind).type: make})
        yield made
