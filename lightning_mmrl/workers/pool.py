"""A pool of spawned processes that can be killed: one call at a time per process, each with a deadline.

Media decoders and verifiers run foreign code on untrusted input; they hang, crash and exhaust memory. A call that runs past
its deadline or takes its process down costs that one call: the process is killed and replaced.
"""

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self

STARTUP_GRACE_S = 60.0
"""Extra time a fresh process gets for its imports before its first deadline counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The value a call returned, or in `error` why there is none."""

    value: Any = None
    error: str | None = None


class DeadlinePool:
    """Calls `function(item)` in killable processes.

    Args:
        function: A picklable callable; it is sent to each process once.
        workers: Number of processes.
        deadline_s: Seconds a call may take before its process is killed.
    """

    def __init__(self, function: Callable[[Any], Any], *, workers: int, deadline_s: float) -> None:
        self._function = function
        self._deadline_s = deadline_s
        self._workers = [_Worker(function) for _ in range(workers)]

    def map(
        self,
        items: Sequence[Any],
        *,
        budget_s: float = float("inf"),
        on_done: Callable[[int, Outcome], None] | None = None,
    ) -> list[Outcome]:
        """Outcomes in the order of the items.

        Args:
            items: Picklable arguments.
            budget_s: Seconds for the whole batch; items not finished by then get an error.
            on_done: Called with index and outcome as each item ends, in order of completion.
        """
        outcomes: list[Outcome | None] = [None] * len(items)
        waiting = deque(range(len(items)))
        stop_at = time.monotonic() + budget_s

        def settle(index: int, outcome: Outcome) -> None:
            outcomes[index] = outcome
            if on_done is not None:
                on_done(index, outcome)

        while waiting or any(worker.busy for worker in self._workers):
            if time.monotonic() >= stop_at:
                self._abandon(waiting, budget_s, settle)
                break
            for worker in self._workers:
                if waiting and not worker.busy:
                    index = waiting.popleft()
                    worker.start(index, items[index], self._deadline_s)
            self._collect(stop_at, settle)
        return [outcome for outcome in outcomes if outcome is not None]

    def _collect(self, stop_at: float, settle: Callable[[int, Outcome], None]) -> None:
        busy = [worker for worker in self._workers if worker.busy]
        next_deadline = min([stop_at, *(worker.deadline for worker in busy)])
        timeout = min(max(0.0, next_deadline - time.monotonic()), 3600.0)
        ready = wait([worker.connection for worker in busy], timeout)
        now = time.monotonic()
        for worker in busy:
            if worker.connection in ready:
                settle(worker.index, worker.receive())
            elif now >= worker.deadline:
                index = worker.index
                worker.restart()
                settle(index, Outcome(error=f"deadline of {self._deadline_s:g} s exceeded"))

    def _abandon(self, waiting: deque[int], budget_s: float, settle: Callable[[int, Outcome], None]) -> None:
        reason = f"batch budget of {budget_s:g} s exceeded"
        for worker in self._workers:
            if worker.busy:
                index = worker.index
                worker.restart()
                settle(index, Outcome(error=reason))
        for index in waiting:
            settle(index, Outcome(error=reason))

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _Worker:
    """One process and its pipe."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self.busy = False
        self.index = -1
        self.deadline = float("inf")
        self._spawn()

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, self._function), daemon=True)
        self._process.start()
        child.close()
        self._fresh = True

    def start(self, index: int, item: Any, deadline_s: float) -> None:
        self.index, self.busy = index, True
        grace = STARTUP_GRACE_S if self._fresh else 0.0
        self.deadline = time.monotonic() + deadline_s + grace
        try:
            self.connection.send(item)
        except (BrokenPipeError, ConnectionResetError):
            # The process died while idle: the item goes to its replacement.
            self.restart()
            self.index, self.busy = index, True
            self.deadline = time.monotonic() + deadline_s + STARTUP_GRACE_S
            self.connection.send(item)

    def receive(self) -> Outcome:
        try:
            value, error = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(timeout=5.0)
            code = self._process.exitcode
            self.restart()
            return Outcome(error=f"worker died with exit code {code}")
        self.busy, self._fresh = False, False
        return Outcome(value=value, error=error)

    def restart(self) -> None:
        self.kill()
        self.busy = False
        self._spawn()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """The loop of a worker process: items in, (value, error) out, until the pipe closes."""
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            answer = (function(item), None)
        except Exception as error:
            answer = (None, f"{type(error).__name__}: {error}")
        connection.send(answer)
