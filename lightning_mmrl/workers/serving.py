"""The program of a worker process of a `DeadlinePool`: it limits itself, then serves one call at a time."""

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
    """Bounds of a call; None: no limit.

    After `soft_deadline_s` seconds an exception interrupts the call, if it runs Python code or sleeps; the process
    lives on. `memory_bytes` bounds the address space (RLIMIT_AS, Linux alone) on top of what the process has when it is
    ready: more is a MemoryError, or the end of the process in foreign code that does not check. After `processor_s`
    seconds on a processor, rounded up, the call ends with its process and the error `OVERTIME`, and is not `lost`: that
    is the call's doing however busy the machine is.
    """

    soft_deadline_s: float | None = None
    memory_bytes: int | None = None
    processor_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResult:
    """The value a call returned, or in `error` why there is none; `doing` is what it announced last.

    With `lost` the call was not heard to its end, since its worker died or was killed at the deadline. That may be the
    item's fault or the machine's: another attempt can end otherwise.
    """

    value: Any = None
    error: str | None = None
    doing: str | None = None
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message of a worker: an outcome whose `sizes` bytes of large arrays follow, so that nobody holds them twice."""

    content: bytes
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Announced:
    """A message of a worker: its call is busy with this from now on."""

    what: str


OVERTIME = "processor time exceeded"
"""The error of a call that took more processor time than it may."""

_listeners: list[Callable[[str], None]] = []


def announce(what: str) -> None:
    """Says what the running call is busy with, to be named if its process dies or is killed; elsewhere does nothing."""
    for listener in _listeners:
        listener(what)


_processor: "list[_ProcessorTime]" = []


def lower_processor_time(share: float) -> None:
    """Leaves the running call this share of the processor time that any call may take; elsewhere does nothing."""
    for bound in _processor:
        bound.set(min(1.0, share))


def serve(connection: Connection, payload: bytes, limits: Limits, packages: Mapping[str, str]) -> None:
    """Loads the function, says so, then serves one item at a time until the pipe closes.

    `packages` are those of the user's own that the parent has found, with the folder of each.
    """
    begin(packages)
    try:
        function = pickle.loads(payload)
    except FOREIGN_FAILURES as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    watchdog = _Watchdog(limits.soft_deadline_s)
    _listeners[:] = [lambda what: _tell(connection, watchdog, what)]
    _limit_memory(limits.memory_bytes)
    if limits.processor_s is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # of a call that is ended on purpose nobody wants the memory
        _processor[:] = [_ProcessorTime(limits.processor_s)]
    with suppress(EOFError, ConnectionError):  # the pool was closed
        connection.send(None)
        while True:
            item = connection.recv()
            lower_processor_time(1.0)
            _report(connection, _call(function, item, watchdog))


def begin(packages: Mapping[str, str]) -> None:
    """Readies a process that was just started: it ends with its parent, and finds the user's packages as that does."""
    end_with_parent()
    find_own_packages(packages)


def end_with_parent() -> None:
    """Makes this process the head of a group that is killed when its parent ends, however it ends.

    Signals of the terminal reach the parent alone, which decides what becomes of this process.
    """
    os.setsid()
    threading.Thread(target=_exit_with_parent, daemon=True).start()


class _ProcessorTime:
    """Lets the kernel end this process when a call was on a processor for too long, in whatever code."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def set(self, share: float) -> None:
        """Bounds the call; the whole time counts anew from where the process is now."""
        until = math.ceil(time.process_time() + share * self._seconds)
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (until if most == resource.RLIM_INFINITY else min(until, most), most))


class _Watchdog:
    """Interrupts the main thread by an exception when a watched call takes too long.

    A thread of its own sends SIGUSR2: math-verify needs SIGALRM for itself.
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
        """A call that must end in time."""
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
        """Code of ours within a call, which must not be interrupted."""
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
                else:  # held for a moment
                    self._changed.wait(0.01)

    def _interrupt(self, *_: object) -> None:
        if self._armed:
            self._armed = False
            raise OverrunError(f"soft deadline of {self._seconds} s exceeded")


def _call(function: Callable[[Any], Any], item: Any, watchdog: _Watchdog) -> CallResult:
    try:
        with watchdog.watching():
            return CallResult(value=function(item))
    except MmrlError as error:
        return CallResult(error=str(error))
    except MemoryError:
        return CallResult(error="memory limit exceeded")
    except FOREIGN_FAILURES as error:  # whatever foreign code raises is its failure, not the run's
        return CallResult(error=f"{type(error).__name__}: {error}")


def _report(connection: Connection, outcome: CallResult) -> None:
    arrays: list[pickle.PickleBuffer] = []
    try:
        content = pickle.dumps(outcome, protocol=5, buffer_callback=arrays.append)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        connection.send(CallResult(error=f"its result cannot be sent back: {error}"))
        return
    views = [array.raw() for array in arrays]
    connection.send(Parcel(content, tuple(view.nbytes for view in views)))
    for view in views:
        connection.send_bytes(view)


def _tell(connection: Connection, watchdog: _Watchdog, what: str) -> None:
    with watchdog.held():
        connection.send(Announced(what))


def _limit_memory(extra_bytes: int | None) -> None:
    if extra_bytes is None or sys.platform != "linux":
        return
    held_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = held_bytes + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))


def _exit_with_parent() -> None:
    """A call in an endless loop would outlive a killed run."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.killpg(os.getpid(), signal.SIGKILL)
