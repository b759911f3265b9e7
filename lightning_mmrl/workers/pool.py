"""A pool of spawned processes that can be killed: one call at a time per process, each with a deadline.

Media decoders and verifiers run foreign code on untrusted input; they hang, crash and exhaust memory. If a call misses
its deadline or crashes its process, only that call is lost: the process is killed and replaced.
"""

import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any, Self

from lightning_mmrl.errors import MmrlError
from lightning_mmrl.workers.own_packages import own_packages
from lightning_mmrl.workers.serving import OVERTIME, Announced, CallResult, Limits, Parcel, serve

_START_LIMIT_S = 120.0
_EXIT_GRACE_S = 1.0
_MAX_LOST_STARTS = 12
"""Number of workers in a row that may be killed from outside before they are ready."""
_LATE_COST = 4
"""A worker that was not ready in time counts as this many killed ones, because each takes minutes."""

ATTEMPTS = 4
"""Number of times that `map_patiently` calls an item whose worker died or ran out of time."""
LAST_DEADLINE_FACTOR = 2.0
"""Factor on the deadline in the last attempt, because the machine may be busy for a while."""


class WorkerError(MmrlError):
    """A worker process cannot start or cannot load its function."""


class DeadlinePool:
    """Calls `function(item)` in `num_workers` spawned processes; a process whose item exceeds `deadline_s` is killed.

    Each item has the main thread of a process to itself (math-verify calls `signal.alarm`: huggingface/Math-Verify#55,
    verl#5839), and a wall-clock deadline. A killed or dead worker is replaced; only the item that it held is lost. A
    worker leads its own process group: processes that a call starts die with the worker, and all workers die with this
    process.

    Build the pool before CUDA is initialized and close it at the end. The function is pickled once and imported again
    in each worker, so a script that builds a pool needs the `if __name__ == "__main__"` guard. `limits` can add a soft
    deadline, which costs no process, and bounds on memory and processor time. `deadline_key` is the name
    of the setting for `deadline_s`; the error of an item that exceeds the deadline mentions it.

    Raises:
        WorkerError: The function cannot be pickled, or a worker cannot start.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        num_workers: int,
        deadline_s: float,
        limits: Limits | None = None,
        deadline_key: str | None = None,
        process_name: str = "mmrl-worker",
    ) -> None:
        try:
            payload = pickle.dumps(function)
        except Exception as error:
            raise WorkerError(
                f"{function!r} cannot be sent to worker processes ({error}); use importable functions and classes"
            ) from error
        self._new_worker = partial(_Worker, payload, limits or Limits(), process_name)
        self._deadline_s = deadline_s
        self._deadline_key = deadline_key
        self._lost_starts = 0
        self._killed = False
        self._workers: list[_Worker] = []
        try:
            self._workers += [self._new_worker() for _ in range(num_workers)]
            for slot in range(num_workers):
                self._await_ready(slot)
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return not self._workers

    def map(
        self,
        items: Sequence[Any],
        *,
        budget_s: float = float("inf"),
        on_done: Callable[[int, CallResult], None] | None = None,
        deadline_factor: float = 1.0,
    ) -> list[CallResult]:
        """Calls the function on all items, and returns the outcomes in the order of the items.

        Args:
            items: Picklable arguments.
            budget_s: Seconds for the whole batch; items that are unfinished by then get an error.
            on_done: Called with index and outcome of each finished item, in order of completion.
            deadline_factor: Factor on the deadline of an item.

        Raises:
            WorkerError: A replacement worker cannot start; the pool is closed then.
        """
        deadline_s = deadline_factor * self._deadline_s
        overdue = f"deadline of {deadline_s} s exceeded"
        if self._deadline_key is not None:
            times = "" if deadline_factor == 1 else f"{deadline_factor:g} x "
            overdue += f" ({times}{self._deadline_key})"
        batch = _Batch(
            items=items,
            end=time.monotonic() + budget_s,
            deadline_s=deadline_s,
            overdue=overdue,
            on_done=on_done,
            outcomes=[None] * len(items),
            pending=deque(range(len(items))),
            num_unsettled=len(items),
        )
        try:
            while batch.num_unsettled and time.monotonic() < batch.end:
                if self._killed:
                    raise WorkerError("the workers were killed")
                self._assign(batch)
                self._collect(batch)
                self._enforce_deadlines(batch)
        except WorkerError:
            self.close()
            raise
        finally:
            for slot, worker in enumerate(self._workers):
                if worker.item is not None:  # the next call must not get the result of an old item
                    self._replace(slot)
        for item, outcome in enumerate(batch.outcomes):
            if outcome is None:
                batch.settle(item, CallResult(error=f"batch budget of {budget_s} s exceeded"))
        return [outcome for outcome in batch.outcomes if outcome is not None]

    def map_patiently(
        self, items: Sequence[Any], *, on_done: Callable[[int, CallResult], None] | None = None
    ) -> list[CallResult]:
        """Like `map`, but calls a lost item again, up to `ATTEMPTS` times in all; the last error says how often.

        So an item does not fail because something else killed or stopped its worker. The last attempt takes one item at
        a time, because together they may be too much for the machine.

        Raises:
            WorkerError: As `map`.
        """
        outcomes: dict[int, CallResult] = {}

        def attempt(indices: Sequence[int], *, is_last: bool = False) -> list[int]:
            """Calls items again; returns the indices of items that were lost again."""

            def settled(place: int, outcome: CallResult) -> None:
                index = indices[place]
                if is_last and outcome.lost:
                    outcome = replace(outcome, error=f"{outcome.error}, the last of {ATTEMPTS} attempts")
                outcomes[index] = outcome
                if on_done is not None and (is_last or not outcome.lost):
                    on_done(index, outcome)

            factor = LAST_DEADLINE_FACTOR if is_last else 1.0
            self.map([items[index] for index in indices], on_done=settled, deadline_factor=factor)
            return [index for index in indices if outcomes[index].lost]

        lost = list(range(len(items)))
        for _ in range(ATTEMPTS - 1):
            lost = attempt(lost)
        for index in lost:
            attempt([index], is_last=True)
        return [outcomes[index] for index in range(len(items))]

    def kill(self) -> None:
        """Kills all workers for good, from any thread; a `map` that is running elsewhere ends with a WorkerError."""
        self._killed = True
        for worker in list(self._workers):
            worker.kill()

    def close(self) -> None:
        """Ends all workers and kills busy ones. May be called again."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.connection.close()
        until = time.monotonic() + _EXIT_GRACE_S
        for worker in workers:
            worker.end(grace_s=max(0.0, until - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _assign(self, batch: "_Batch") -> None:
        for slot, worker in enumerate(self._workers):
            while worker.idle and batch.pending:
                item = batch.pending.popleft()
                try:
                    worker.give(item, batch.items[item], batch.deadline_s)
                except OSError:  # the worker died while idle, so the item is not the cause
                    batch.pending.appendleft(item)
                    self._replace(slot)
                    break
                except Exception as error:
                    batch.settle(item, CallResult(error=f"cannot be sent to a worker: {error}"))

    def _collect(self, batch: "_Batch") -> None:
        """Waits until a worker reports, a deadline passes or the budget ends, then handles all reports."""
        waiting = {slot: worker for slot, worker in enumerate(self._workers) if not worker.idle}
        until = min([batch.end, *(worker.deadline for worker in waiting.values())])
        connections = [worker.connection for worker in waiting.values()]
        reported = wait(connections, timeout=max(0.0, until - time.monotonic())) if connections else []
        for slot, worker in waiting.items():
            if worker.connection not in reported:
                continue
            try:
                outcome = worker.take()
            except (EOFError, OSError) as error:
                if worker.item is None:
                    self._restart(slot, error)
                else:
                    worker.end(grace_s=_EXIT_GRACE_S)
                    batch.settle(worker.item, worker.died())
                    self._replace(slot)
                continue
            self._lost_starts = 0
            if outcome is not None and worker.item is not None:
                if worker.again:
                    batch.pending.appendleft(worker.item)
                else:
                    batch.settle(worker.item, outcome)
                worker.item = None
                if worker.spent:
                    self._replace(slot)

    def _enforce_deadlines(self, batch: "_Batch") -> None:
        now = time.monotonic()
        for slot, worker in enumerate(self._workers):
            if worker.item is not None and now >= worker.deadline:
                batch.settle(worker.item, worker.failed(batch.overdue))
                self._replace(slot)
            elif not worker.ready and now >= worker.deadline:
                self._restart(slot, is_late=True)

    def _await_ready(self, slot: int) -> None:
        """Blocks until a worker has loaded the function."""
        while not self._workers[slot].ready:
            worker = self._workers[slot]
            try:
                if not worker.connection.poll(max(0.0, worker.deadline - time.monotonic())):
                    raise TimeoutError
                worker.take()
            except TimeoutError as error:
                self._restart(slot, error, is_late=True)
            except (EOFError, OSError) as error:
                self._restart(slot, error)

    def _restart(self, slot: int, cause: BaseException | None = None, *, is_late: bool = False) -> None:
        """Replaces a worker that died before it was ready, or was late (`is_late`), if the machine may be the cause.

        Raises:
            WorkerError: The worker ended by itself, or too many in a row were lost.
        """
        worker = self._workers[slot]
        worker.end(grace_s=0.0 if is_late else _EXIT_GRACE_S)
        code = worker.process.exitcode
        self._lost_starts += _LATE_COST if is_late else 1
        if (code or 0) > 0 or self._lost_starts > _MAX_LOST_STARTS:
            died = f"a worker died at its start with exit code {code}"
            raise WorkerError(f"a worker did not start within {_START_LIMIT_S} s" if is_late else died) from cause
        self._replace(slot)

    def _replace(self, slot: int) -> None:
        if self._killed:
            raise WorkerError("the workers were killed")
        self._workers[slot].end(grace_s=0.0)
        self._workers[slot] = self._new_worker()


@dataclass(slots=True, kw_only=True)
class _Batch:
    """The state of one `map`: `outcomes[i]` is None until item i is settled; `overdue` is the error at a deadline."""

    items: Sequence[Any]
    end: float
    deadline_s: float
    overdue: str
    on_done: Callable[[int, CallResult], None] | None
    outcomes: list[CallResult | None]
    pending: deque[int]
    num_unsettled: int

    def settle(self, item: int, outcome: CallResult) -> None:
        self.outcomes[item] = outcome
        self.num_unsettled -= 1
        if self.on_done is not None:
            self.on_done(item, outcome)


class _Worker:
    """One process and its present item; `deadline` limits its start until it is ready, and then its item."""

    def __init__(self, payload: bytes, limits: Limits, name: str) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        given = (theirs, payload, limits, own_packages())
        self.process = context.Process(target=serve, args=given, name=name, daemon=True)
        self.process.start()
        theirs.close()
        assert self.process.pid is not None
        self._group = self.process.pid
        self._ended = False
        self.item: int | None = None
        self.doing: str | None = None
        self.ready = self.spent = self.again = False
        self.deadline = time.monotonic() + _START_LIMIT_S

    @property
    def idle(self) -> bool:
        return self.ready and self.item is None

    def give(self, item: int, argument: Any, deadline_s: float) -> None:
        self.connection.send(argument)
        self.doing = None
        self.item, self.deadline = item, time.monotonic() + deadline_s

    def take(self) -> CallResult | None:
        """Receives a message: returns the item's outcome, or None if the worker is ready or announced a step."""
        message = self.connection.recv()
        if isinstance(message, Announced):
            self.doing = message.what
            return None
        if isinstance(message, str):
            raise WorkerError(f"a worker cannot load what it is to call: {message}")
        self.ready = True
        if not isinstance(message, Parcel):
            return message
        self.spent, self.again = message.spent, message.again
        arrays = [bytearray(size) for size in message.sizes]
        for array in arrays:
            self.connection.recv_bytes_into(array)
        return pickle.loads(message.content, buffers=arrays)

    def died(self) -> CallResult:
        """The outcome of an item whose worker ended."""
        if self.process.exitcode == -signal.SIGXCPU:
            return CallResult(error=OVERTIME, doing=self.doing)
        return self.failed(f"worker died with exit code {self.process.exitcode}")

    def failed(self, error: str) -> CallResult:
        """The outcome of an item that is lost with its worker."""
        return CallResult(error=error, doing=self.doing, lost=True)

    def end(self, grace_s: float) -> None:
        """Waits `grace_s` seconds for the exit, then kills the process group; later calls do nothing."""
        if self._ended:
            return
        self._ended = True
        wait([self.process.sentinel], timeout=grace_s)
        self.kill()
        self.process.join()
        self.connection.close()

    def kill(self) -> None:
        """Kills the process group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group, signal.SIGKILL)
        self.process.kill()  # a process that has not called setsid yet leads no group
