"""The main loop of a `DeadlinePool` worker process: it limits its own resources, then serves one call at a time."""

import math
import os
import pickle
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lightning_mmrl.errors import FOREIGN_FAILURES, MmrlError
from lightning_mmrl.workers.own_packages import find_own_packages


class OverrunError(MmrlError):
    """A call was interrupted at its soft deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a call; None means no limit.

    Attributes:
        soft_deadline_s: Seconds after which an exception interrupts the call, if it runs Python code or sleeps. The
            process lives on.
        memory_bytes: Bytes of address space that the process may take beyond its size when it is ready (RLIMIT_AS,
            Linux only). A call that needs more gets a MemoryError; native code that does not check may end the process.
            A process that keeps more than half of it from call to call is replaced, and so is one that ran out of it. A
            call that fails for want of memory, or in a process that earlier calls left with less than three quarters of
            it, is repeated in a new process, so its outcome does not depend on them.
        processor_s: Processor time in seconds, rounded up, after which the call ends with its process and the error
            `OVERTIME`. Such a call is not `lost`, because a busy machine cannot be the cause.
    """

    soft_deadline_s: float | None = None
    memory_bytes: int | None = None
    processor_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResult:
    """The result of a call.

    Attributes:
        value: The value that the call returned.
        error: The reason if there is no value.
        doing: The last step that the call announced.
        lost: Whether the worker died or was killed at the deadline. That may be the item's fault or the machine's, so
            another attempt may succeed.
    """

    value: Any = None
    error: str | None = None
    doing: str | None = None
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Parcel:
    """A worker's message: a pickled outcome. Its large arrays follow, in `sizes` bytes each, to avoid a copy.

    Attributes:
        spent: Whether the worker is to be replaced.
        again: Whether the outcome does not count, and a new worker is to repeat the call.
    """

    content: bytes
    sizes: tuple[int, ...]
    spent: bool
    again: bool


@dataclass(frozen=True, slots=True)
class Announced:
    """A worker's message: the step that its call is starting."""

    what: str


OVERTIME = "processor time exceeded"
"""The error of a call that exceeded its processor time."""

_listeners: list[Callable[[str], None]] = []


def announce(what: str) -> None:
    """Announces the step that the running call starts, so that the error can name it if the process dies.

    Outside of a worker this does nothing.
    """
    for listener in _listeners:
        listener(what)


_shortages: list[bool] = []
"""Holds an entry if the running call ran out of memory."""


def note_shortage() -> None:
    """Says that the running call ran out of memory, where its error does not say so to this module."""
    _shortages.append(True)


_processor_s: list[float] = []
"""Processor seconds that a call in this worker may use; empty if there is no bound."""


def lower_processor_time(share: float) -> None:
    """Limits the running call to this share of its pool's processor time, counted from now.

    The kernel ends the process at the limit, whatever code it runs. Outside of a worker this does nothing.
    """
    for seconds in _processor_s:
        until = math.ceil(time.process_time() + min(1.0, share) * seconds)
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (until if most == resource.RLIM_INFINITY else min(until, most), most))


def serve(connection: Connection, payload: bytes, limits: Limits, packages: Mapping[str, str]) -> None:
    """Loads the function, reports that the worker is ready, then serves one item at a time until the pipe closes.

    `packages` are the user's own packages that the parent finds, with the folder of each.
    """
    begin(packages)
    try:
        function = pickle.loads(payload)
    except FOREIGN_FAILURES as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    watchdog = _Watchdog(limits.soft_deadline_s)

    def tell(what: str) -> None:
        with watchdog.held():
            connection.send(Announced(what))

    _listeners[:] = [tell]
    memory = _Memory(limits.memory_bytes if sys.platform == "linux" else None)
    if limits.processor_s is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a call that is ended on purpose needs no core dump
        _processor_s[:] = [limits.processor_s]
    with suppress(EOFError, ConnectionError):  # the pool was closed
        connection.send(None)
        for number in count():
            item = connection.recv()
            lower_processor_time(1.0)
            _shortages.clear()
            outcome = _call(function, item, watchdog)
            _report(connection, outcome, memory, again=number > 0 and memory.is_doubtful(outcome))
            del item, outcome  # not held while the next item arrives


def begin(packages: Mapping[str, str]) -> None:
    """Prepares a new process: it ends when its parent ends, and finds the user's packages as the parent does.

    The process becomes the head of a process group, which is killed when the parent ends for any reason. Signals of the
    terminal reach only the parent, which then ends this process or lets it finish.
    """
    os.setsid()
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    find_own_packages(packages)


class _Watchdog:
    """Interrupts the main thread by an exception when a watched call takes too long.

    A separate thread sends SIGUSR2, because math-verify uses SIGALRM itself.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._changed = threading.Condition()
        self._due: float | None = None
        self._armed = False
        self._main = threading.main_thread().ident
        if seconds is not None:
            signal.signal(signal.SIGUSR2, self._interrupt)
            threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches a call, which must end in time."""
        if self._seconds is None:
            yield
            return
        self._set(time.monotonic() + self._seconds)
        self._armed = True
        try:
            yield
        finally:
            self._armed = False
            self._set(None)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Protects our own code within a call from interruption."""
        armed, self._armed = self._armed, False
        try:
            yield
        finally:
            self._armed = armed

    def _set(self, due: float | None) -> None:
        with self._changed:
            self._due = due
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while True:
                left = None if self._due is None else self._due - time.monotonic()
                if left is None or left > 0:
                    self._changed.wait(left)
                elif self._armed and self._main is not None:
                    self._due = None
                    signal.pthread_kill(self._main, signal.SIGUSR2)
                else:  # the interruption is held back for a moment
                    self._changed.wait(0.01)

    def _interrupt(self, *_: object) -> None:
        if self._armed:
            self._armed = False
            raise OverrunError(f"soft deadline of {self._seconds} s exceeded")


def _call(function: Callable[[Any], Any], item: Any, watchdog: _Watchdog) -> CallResult:
    def watched(item: Any) -> Any:
        with watchdog.watching():
            return function(item)

    return call_here(watched, item)


def call_here(function: Callable[[Any], Any], item: Any) -> CallResult:
    """Calls a function in this process, without deadlines; a failure becomes the error of the result."""
    try:
        return CallResult(value=function(item))
    except MmrlError as error:
        return CallResult(error=str(error))
    except MemoryError:
        note_shortage()
        return CallResult(error="memory limit exceeded")
    except FOREIGN_FAILURES as error:  # a failure of foreign code must not end the run
        return CallResult(error=f"{type(error).__name__}: {error}")


class _Memory:
    """Bounds the memory of this process, and says how much of it earlier calls have left; None for no bound."""

    def __init__(self, allowed_bytes: int | None) -> None:
        self._allowed = allowed_bytes
        self._space = self._kept = 0
        if allowed_bytes is None:
            return
        self._space, self._kept = self._grown()
        wanted, (_, most) = self._space + allowed_bytes, resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))

    def is_doubtful(self, outcome: CallResult) -> bool:
        """Whether a call ran out of memory, or may have failed because earlier ones had left little.

        Decoders report a shortage in many words, such as that a frame is damaged.
        """
        left_little = self._allowed is not None and self._grown()[0] > self._allowed / 4
        return bool(_shortages) or (outcome.error is not None and left_little)

    def is_spent(self, num_bytes: int) -> bool:
        """Whether this process is to be replaced, though the result of the last call takes `num_bytes`."""
        kept_too_much = self._allowed is not None and self._grown()[1] - num_bytes > self._allowed / 2
        return bool(_shortages) or kept_too_much

    def _grown(self) -> tuple[int, int]:
        """Bytes of address space, and those in memory, since the start."""
        space, kept = Path("/proc/self/statm").read_text().split()[:2]
        size = resource.getpagesize()
        return int(space) * size - self._space, int(kept) * size - self._kept


def _report(connection: Connection, outcome: CallResult, memory: _Memory, *, again: bool) -> None:
    arrays: list[pickle.PickleBuffer] = []
    try:
        content = pickle.dumps(outcome, protocol=5, buffer_callback=arrays.append)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        connection.send(CallResult(error=f"its result cannot be sent back: {error}"))
        return
    views = [array.raw() for array in arrays]
    sizes = tuple(view.nbytes for view in views)
    connection.send(Parcel(content, sizes, again or memory.is_spent(sum(sizes)), again))
    for view in views:
        connection.send_bytes(view)


def _exit_with_parent() -> None:
    """Kills this process group when the parent ends; otherwise a call in an endless loop would outlive a killed run."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.killpg(os.getpid(), signal.SIGKILL)
