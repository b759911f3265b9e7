"""Reads samples in a thread, ahead of the one who takes them, so that training does not wait for media."""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, Self

from torch import Tensor

from lightning_mmrl.data.collate import EncodedSample
from lightning_mmrl.data.prepared import Fault
from lightning_mmrl.data.sampler import Draw

Read = Callable[[Sequence[Draw]], Sequence[EncodedSample | Fault]]
"""Reads samples; a sample that cannot be used gives a `Fault`."""

_END_S = 10.0
"""Seconds that `close` waits for the thread."""


class SampleReader(Protocol):
    """Where a loader gets its samples from."""

    def want(self, draws: Iterable[Draw]) -> None:
        """Says which draws will be taken next, in order; replaces what an earlier call said."""
        ...

    def take(self, draws: Sequence[Draw]) -> list[EncodedSample | Fault]:
        """The samples of these draws, as soon as all are read."""
        ...


class ReadNow:
    """Reads samples when they are taken; implements `SampleReader`."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def want(self, draws: Iterable[Draw]) -> None:
        """Does nothing."""

    def take(self, draws: Sequence[Draw]) -> list[EncodedSample | Fault]:
        """Reads the samples of these draws."""
        return list(self._read(draws))


class ReadAhead:
    """Reads wanted samples in a thread, in order, within bounds; implements `SampleReader`.

    The bounds limit what is read and not taken yet. A draw that is being taken is read whatever they say, so they cost
    time and never stop anything. An error of the thread is raised by `take`.

    Args:
        read: Called in the thread only.
        end: Called by `close`, from the thread that closes: makes a `read` that is running end soon.
        most_samples: Bound in samples.
        most_bytes: Bound in bytes of tensors; the sample that reaches it is still kept.
        together: Samples that one `read` gets at most.
    """

    def __init__(
        self, read: Read, end: Callable[[], None], *, most_samples: int, most_bytes: int, together: int
    ) -> None:
        self._read = read
        self._end = end
        self._most_samples = most_samples
        self._most_bytes = most_bytes
        self._together = together
        self._changed = threading.Condition()
        self._wanted: list[Draw] = []
        self._urgent: set[Draw] = set()
        self._held: dict[Draw, EncodedSample | Fault] = {}
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="mmrl-read-ahead", daemon=True)
        self._thread.start()

    def want(self, draws: Iterable[Draw]) -> None:
        """Replaces the list of draws to read, and drops samples that are no longer on it."""
        with self._changed:
            self._wanted = list(dict.fromkeys(draws))
            kept = set(self._wanted)
            self._held = {draw: found for draw, found in self._held.items() if draw in kept}
            self._changed.notify_all()

    def take(self, draws: Sequence[Draw]) -> list[EncodedSample | Fault]:
        """The samples of these draws, as soon as all are read; they are not held any longer.

        Raises:
            BaseException: The thread ended with it.
        """
        with self._changed:
            self._urgent = set(draws)
            self._wanted = list(dict.fromkeys([*draws, *self._wanted]))
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._error is not None or self._urgent <= self._held.keys())
            if self._error is not None:
                raise self._error
            self._urgent = set()
            taken = set(draws)
            self._wanted = [draw for draw in self._wanted if draw not in taken]
            found = [self._held[draw] for draw in draws]
            for draw in taken:
                del self._held[draw]
            self._changed.notify_all()
            return found

    def close(self) -> None:
        """Ends the thread; what it holds is dropped."""
        with self._changed:
            self._closed = True
            self._held.clear()
            self._changed.notify_all()
        self._end()
        self._thread.join(_END_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while (draws := self._next()) is not None:
                found = self._read(draws)
                with self._changed:
                    kept = self._urgent.union(self._wanted)
                    self._held.update((draw, each) for draw, each in zip(draws, found, strict=True) if draw in kept)
                    self._changed.notify_all()
        except BaseException as error:  # raised again where it can be handled, by `take`
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next(self) -> list[Draw] | None:
        """Waits for draws to read; None at the end."""
        with self._changed:
            found: list[Draw] = []

            def ready() -> bool:
                found[:] = [] if self._closed else self._unread()
                return self._closed or bool(found)

            self._changed.wait_for(ready)
            return found or None

    def _unread(self) -> list[Draw]:
        missing = [draw for draw in self._wanted if draw not in self._held]
        urgent = [draw for draw in missing if draw in self._urgent]
        if urgent:
            return urgent[: self._together]
        room = self._most_samples - len(self._held)
        if room <= 0 or sum(map(_num_bytes, self._held.values())) >= self._most_bytes:
            return []
        return missing[: min(room, self._together)]


def _num_bytes(found: EncodedSample | Fault) -> int:
    if isinstance(found, Fault):
        return 0
    parts = (found, *found.later)
    tensors = {id(value): value for part in parts for value in part.prompt.values() if isinstance(value, Tensor)}
    return sum(tensor.nbytes for tensor in tensors.values())
