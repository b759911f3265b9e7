"""A step over tensors that stay where they are: computed as it is, or captured by CUDA once and replayed.

Never run on a GPU so far: none was available. On a CPU tests replay the recorded operations of a step in its place.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

from lightning_mmrl.ops.tiled_attention import autocast_dtype

Step = Callable[[], None]


class Capture(Protocol):
    """Makes of a step a function that repeats what the device did in it, without the host's work."""

    def warm(self, step: Step) -> None:
        """Runs a step that is going to be captured, so that libraries allocate what they keep."""
        ...

    def capture(self, step: Step) -> Step:
        """Returns the replay of a step, and computes nothing. Replays of earlier steps are no longer called."""
        ...


class CudaGraphs:
    """Captures steps as CUDA graphs; a later one takes the memory of the earlier one, of which no replay follows.

    A step is warmed and captured on one stream of its own, since a library that first allocates during a capture would
    hold memory of the graph for ever. Threads that prepare data may use CUDA meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def warm(self, step: Step) -> None:
        """Runs a step on the stream of the captures."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            step()
        current.wait_stream(self._stream)

    def capture(self, step: Step) -> Step:
        """Captures a step."""
        graph = torch.cuda.CUDAGraph()
        # The earlier graph lives until the new one has its pool, which would otherwise be given up in between.
        pool = None if self._graph is None else self._graph.pool()
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            step()
        self._graph = graph
        return graph.replay


CAPTURES: dict[str, Callable[[torch.device], Capture]] = {"cuda": CudaGraphs}
"""By type of device, how steps are captured; elsewhere each step is computed as it is."""


class CapturedStep:
    """Repeats a step, which must find all of its tensors where they were, with the same shapes.

    The first run is a step like any other, the second is captured and replayed, and all later ones are replayed. The
    step itself is not kept: a step that is its owner's method would keep the owner and its tensors alive.

    Args:
        device: Where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        make = CAPTURES.get(device.type)
        self._device = device
        self._capture = None if make is None else make(device)
        self._warm = False
        self._replay: Step | None = None

    def run(self, step: Step) -> None:
        """Computes the step once; it reads and writes tensors that it does not return, and the host waits for none."""
        if self._replay is not None:
            return self._replay()

        def converted() -> None:
            with _without_cached_casts(self._device):
                step()

        if self._capture is None:
            return converted()
        if not self._warm:
            self._warm = True
            return self._capture.warm(converted)
        self._replay = self._capture.capture(converted)
        return self._replay()

    def moved(self) -> None:
        """Says that tensors are elsewhere or have other shapes: the next run begins anew."""
        self._warm, self._replay = False, None


def _without_cached_casts(device: torch.device) -> AbstractContextManager[Any]:
    """Makes autocast convert weights within the step: a copy from outside of it would be gone when it is replayed."""
    dtype = autocast_dtype(device)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype, cache_enabled=False)
