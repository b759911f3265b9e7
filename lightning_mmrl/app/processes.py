"""Runs commands of `mmrl` as processes: several at a time, each with a log, and signals passed on to all of them."""

import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from filelock import FileLock, Timeout

from lightning_mmrl.errors import MmrlError
from lightning_mmrl.training.interruption import SIGNALS, Interrupted

_PAUSE_S = 0.1
EXIT_REFUSED = 2
"""Exit code of a task that fails in this process, as `mmrl` gives it with its one sentence."""


@contextmanager
def forwarding(processes: Sequence["subprocess.Popen[bytes]"]) -> Iterator[list[int]]:
    """Passes each signal on to the processes that are in the list when it comes; yields the signals that came.

    A process that starts in a session of its own receives a signal of the terminal once, from here.
    """
    received: list[int] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        for process in processes:
            process.send_signal(signum)

    before = {signum: signal.signal(signum, forward) for signum in (*SIGNALS, signal.SIGHUP)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def mmrl(arguments: Sequence[str]) -> list[str]:
    """The command that runs `mmrl` with these arguments."""
    return [sys.executable, "-m", "lightning_mmrl.cli.main", *arguments]


def exit_code(code: int) -> int:
    """The exit code of a process as a shell gives it.

    >>> exit_code(-9)
    137
    """
    return code if code >= 0 else 128 - code


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A process of `mmrl`.

    Attributes:
        arguments: Its arguments.
        lock: The file that it holds while it works.
        prepare: Called before it starts, when no other process holds the lock.
    """

    arguments: Sequence[str]
    lock: Path
    prepare: Callable[[], object] = lambda: None


Steps = Generator[Command, int, int]
"""Yields commands, is sent their exit codes, and returns the exit code of the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Commands one after another, once the tasks that it waits for have ended, whatever their exit codes.

    Attributes:
        name: Its name.
        log: The file that all output is appended to, and the error of a step between two commands.
        begin: Begins its steps.
        waits_for: Names of the tasks that it waits for.
    """

    name: str
    log: Path
    begin: Callable[[], Steps]
    waits_for: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A task that ended, with its exit code and the seconds it took."""

    task: Task
    code: int
    seconds: float


@dataclass(slots=True, kw_only=True)
class _Running:
    """A task at its present command; without a process while one of an earlier call still works in the folder."""

    task: Task
    steps: Steps
    started: float
    command: Command | None = None
    process: "subprocess.Popen[bytes] | None" = None


class Pool:
    """Runs tasks, at most `parallel` at a time.

    Args:
        parallel: Tasks at a time.
        environment: Variables of the processes.
        on_start: Called with each task that starts.
        on_end: Called with each task that ended.
    """

    def __init__(
        self,
        parallel: int,
        environment: Mapping[str, str],
        *,
        on_start: Callable[[Task], object],
        on_end: Callable[[Ended], object],
    ) -> None:
        self._parallel = parallel
        self._environment = environment
        self._on_start, self._on_end = on_start, on_end
        self._running: list[_Running] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._received: list[int] = []
        self._codes: dict[str, int] = {}

    def run(self, tasks: Sequence[Task]) -> dict[str, int]:
        """Runs all tasks, in order where nothing has to be waited for.

        Returns:
            The exit code of each task.

        Raises:
            Interrupted: A signal came; it was passed on to all processes, and they have ended.
        """
        waiting = list(tasks)
        with forwarding(self._processes) as self._received:
            try:
                while waiting or self._running:
                    self._fill(waiting)
                    if self._received and not self._processes:
                        break
                    if waiting and not self._running:
                        names = sorted({name for task in waiting for name in task.waits_for} - self._codes.keys())
                        raise RuntimeError(f"{len(waiting)} tasks wait for {', '.join(names)}, which is none of them")
                    time.sleep(_PAUSE_S)
                    for running in tuple(self._running):
                        self._look(running)
            finally:
                for process in self._processes:  # none is left, unless an error of this process ends it
                    process.terminate()
                    process.wait()
        if self._received:
            raise Interrupted(self._received[0])
        return self._codes

    def _fill(self, waiting: list[Task]) -> None:
        """Starts tasks while there is room and nothing that they wait for."""
        while not self._received and len(self._running) < self._parallel:
            task = next((each for each in waiting if set(each.waits_for) <= self._codes.keys()), None)
            if task is None:
                return
            waiting.remove(task)
            self._on_start(task)
            running = _Running(task=task, steps=task.begin(), started=time.monotonic())
            self._running.append(running)
            self._advance(running, partial(next, running.steps))

    def _look(self, running: _Running) -> None:
        """Sees whether the process of a task has ended, and goes on with its next command if no signal came."""
        if running.process is None:
            try:
                self._launch(running)
            except (MmrlError, OSError) as error:
                self._fail(running, error)
            return
        code = running.process.poll()
        if code is None:
            return
        self._processes.remove(running.process)
        running.process = None
        if self._received:
            self._running.remove(running)
            return
        self._advance(running, partial(running.steps.send, exit_code(code)))

    def _advance(self, running: _Running, step: Callable[[], Command]) -> None:
        """Takes the next step of a task, and launches its command."""
        try:
            running.command = step()
            self._launch(running)
        except StopIteration as end:
            self._end(running, end.value)
        except (MmrlError, OSError) as error:
            self._fail(running, error)

    def _fail(self, running: _Running, error: Exception) -> None:
        """Ends a task by an error of this process, which goes to its log; the others go on."""
        with _log_of(running.task) as log:
            log.write(f"{error}\n".encode())
        self._end(running, EXIT_REFUSED)

    def _end(self, running: _Running, code: int) -> None:
        self._running.remove(running)
        self._codes[running.task.name] = code
        self._on_end(Ended(task=running.task, code=code, seconds=time.monotonic() - running.started))

    def _launch(self, running: _Running) -> None:
        """Starts the process, unless one of an earlier call, which was killed alone, still works in the folder.

        That process holds the lock of the task from its start, and the lock of its folder once it has begun to work.
        """
        command = running.command
        if command is None or self._received or is_locked(command.lock):
            return
        with _log_of(running.task) as log, _start_of(running.task) as start:
            if start is None:
                return
            command.prepare()
            process = subprocess.Popen(
                mmrl(command.arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self._environment),
                start_new_session=True,
                pass_fds=[start],
            )
        self._processes.append(process)
        running.process = process
        for signum in tuple(self._received):  # those that came before the process was in the list
            process.send_signal(signum)


def _log_of(task: Task) -> BinaryIO:
    task.log.parent.mkdir(parents=True, exist_ok=True)
    return task.log.open("ab")


@contextmanager
def _start_of(task: Task) -> Iterator[int | None]:
    """Locks a file beside the log; yields its descriptor, None if another process holds it.

    A process that inherits the descriptor keeps the lock until it ends, however this process ends.
    """
    with task.log.with_name(f".{task.log.name}.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def is_locked(lock: Path) -> bool:
    """Whether a process holds a lock."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
