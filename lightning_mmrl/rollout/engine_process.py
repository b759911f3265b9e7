"""An engine in a process of its own, with a second copy of the model: it samples while the trainer updates.

Pushes and orders go through one pipe, and the process does them first in, first out. A thread on each side empties the
pipe, so neither side waits for the other. Only weights that train are pushed: the process loads all others from the
checkpoint that the policy was loaded from.
"""

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from queue import SimpleQueue
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_mmrl.errors import FOREIGN_FAILURES, MmrlError, RolloutError
from lightning_mmrl.machine import refusal
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.suggestions import first_line
from lightning_mmrl.types.batches import SamplingOrder, TimedRollout
from lightning_mmrl.workers.own_packages import own_packages
from lightning_mmrl.workers.serving import begin

POLL_S = 0.1
"""Seconds between two looks for a signal while a rollout is awaited."""

TEARDOWN_S = 10.0
"""Seconds that a process which has closed its pipe gets to end, before it is killed."""

SURVIVED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that a batch system sends to every process; the trainer decides what follows (`training.interruption`)."""


class EngineProcess:
    """Implements `QueuedEngine`; the process starts at the first push, and ends with this one.

    Args:
        build: Makes the engine, with the policy's model from the policy's checkpoint; called in the new process, so it
            must be picklable.

    Attributes:
        num_sampled: Orders that were submitted so far.
    """

    def __init__(self, build: Callable[[], HFEngine]) -> None:
        self._build = build
        self._child: _Child | None = None
        self.num_sampled = 0

    def load_weights(self, policy: nn.Module, version: int) -> None:
        """Sends all weights that train; the process has them before it samples the next order.

        Raises:
            RolloutError: The process has ended.
        """
        if self._child is None:
            device = str(cast(Policy, policy).banned_ids.device)
            self._child = _Child(pickle.dumps(self._build), device)
        named = {name: each.detach() for name, each in policy.named_parameters() if each.requires_grad}
        shapes = {name: (tuple(each.shape), each.dtype) for name, each in named.items()}
        self._child.send(_Push(version, shapes))
        for each in named.values():
            self._child.send_bytes(_bytes_of(each))

    def submit(self, order: SamplingOrder) -> int:
        """Sends an order.

        Raises:
            RolloutError: The process has ended.
        """
        assert self._child is not None, "weights are pushed before anything is sampled"
        self._child.send(order.to("cpu"))
        self.num_sampled += 1
        return self.num_sampled

    def wait(self, ticket: int, poll: Callable[[], None] = lambda: None) -> TimedRollout:
        """Waits for the completions of an order.

        Raises:
            RolloutError: The process failed or ended.
        """
        assert self._child is not None, "weights are pushed before anything is sampled"
        return self._child.wait(ticket, poll)

    def release(self, ticket: int) -> None:
        """Forgets the completions of an order."""
        if self._child is not None:
            self._child.answers.pop(ticket, None)

    def close(self) -> None:
        """Kills the process, whatever it is doing."""
        if self._child is not None:
            self._child.end()


@dataclass(frozen=True, slots=True)
class _Push:
    """Announces weights, which follow one by one: their names with shape and type."""

    version: int
    weights: dict[str, tuple[tuple[int, ...], torch.dtype]]
    values: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Failure:
    """The process cannot go on; `reason` is a clause."""

    reason: str


class _Child:
    """The process, seen from the trainer; `answers` maps tickets to rollouts that a thread has received."""

    def __init__(self, build: bytes, device: str) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        given = (theirs, build, device, own_packages())
        self._process = context.Process(target=serve_engine, args=given, name="mmrl-engine", daemon=True)
        self._process.start()
        # At the exit of this process, multiprocessing would send a SIGTERM, which the other survives, and wait for it.
        self._at_exit = Finalize(None, self.end, exitpriority=10)
        theirs.close()
        self.answers: dict[int, TimedRollout] = {}
        self._failure: str | None = None
        self._changed = threading.Condition()
        self._listener = threading.Thread(target=self._listen, name="mmrl-engine-answers", daemon=True)
        self._listener.start()

    def send(self, message: Any) -> None:
        self.send_bytes(pickle.dumps(message))

    def send_bytes(self, content: Any) -> None:
        try:
            self._connection.send_bytes(content)
        except OSError as error:
            raise self._ended() from error

    def wait(self, ticket: int, poll: Callable[[], None]) -> TimedRollout:
        while True:
            with self._changed:
                if ticket in self.answers:
                    return self.answers[ticket]
                if self._failure is not None:
                    break
                self._changed.wait(POLL_S)
            poll()
        raise self._ended()

    def end(self) -> None:
        """Kills the process group; later calls do nothing."""
        self._at_exit.cancel()
        self._kill()
        self._process.join()
        self._listener.join()
        self._connection.close()

    def _kill(self) -> None:
        if self._process.pid is not None and self._process.exitcode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()  # a process that has not called setsid yet leads no group

    def _ended(self) -> RolloutError:
        """The error of a process that ended, by itself or not."""
        self._listener.join(TEARDOWN_S)
        self._kill()
        self._listener.join()
        return RolloutError(
            f"the engine process, which samples ahead (rollout.lag), {self._failure}; the same command continues"
        )

    def _listen(self) -> None:
        """Receives answers until there are no more; then the process is of no use, and tells how it ended."""
        failure = self._received()
        if failure is None:
            self._process.join(TEARDOWN_S)
        self._kill()
        self._process.join()
        with self._changed:
            self._failure = failure or _how_it_ended(self._process.exitcode or 0)
            self._changed.notify_all()

    def _received(self) -> str | None:
        """Receives answers, in the order of the orders; returns what failed, or None once the pipe is closed."""
        try:
            for ticket in count(1):
                found = pickle.loads(self._connection.recv_bytes())
                if isinstance(found, _Failure):
                    return f"failed: {found.reason}"
                with self._changed:
                    self.answers[ticket] = found
                    self._changed.notify_all()
        except (EOFError, OSError):
            return None
        except FOREIGN_FAILURES as error:
            return f"failed: its answer cannot be read ({_reason(error)})"


def _how_it_ended(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _bytes_of(tensor: Tensor) -> Any:
    """The content of a tensor, without a copy if it is on the host."""
    content: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(content)


def serve_engine(connection: Connection, build: bytes, device: str, packages: dict[str, str]) -> None:
    """Builds the engine and does what it is told, until the pipe closes; runs in the new process."""
    begin(packages)
    for signum in SURVIVED:
        signal.signal(signum, signal.SIG_IGN)
    told: SimpleQueue[_Push | SamplingOrder | _Failure | None] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, told), daemon=True).start()
    try:
        if device.startswith("cuda"):
            torch.cuda.set_device(device)  # else whatever names no device is on the first one, in every rank's engine
        engine: HFEngine = pickle.loads(build)()
        engine.policy.to(device)
        while (message := told.get()) is not None:
            if isinstance(message, _Push):
                _load(engine, message)
            elif isinstance(message, _Failure):
                raise RolloutError(message.reason)
            else:
                connection.send_bytes(pickle.dumps(_sampled(engine, message.to(device))))
    except FOREIGN_FAILURES as error:
        connection.send_bytes(pickle.dumps(_Failure(_reason(error))))


def _receive(connection: Connection, told: "SimpleQueue[Any]") -> None:
    """Takes messages out of the pipe, so that the trainer never waits for a rollout to end; then says why."""
    last = None
    try:
        with suppress(EOFError, OSError):
            while True:
                message = pickle.loads(connection.recv_bytes())
                if isinstance(message, _Push):
                    for name, (shape, dtype) in message.weights.items():
                        message.values[name] = _tensor_of(connection.recv_bytes(), shape, dtype)
                told.put(message)
    except FOREIGN_FAILURES as error:
        last = _Failure(f"what it was sent cannot be read ({_reason(error)})")
    told.put(last)


def _tensor_of(content: bytes, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(dtype).reshape(shape)


@torch.no_grad()
def _load(engine: HFEngine, push: _Push) -> None:
    """Gives the engine's policy the pushed weights.

    Raises:
        RolloutError: The policy has other weights.
    """
    known = dict(engine.policy.named_parameters())
    for name, value in push.values.items():
        mine = known.get(name)
        if mine is None or mine.shape != value.shape or mine.dtype != value.dtype:
            raise RolloutError(f"its model has no weight {name} of shape {tuple(value.shape)} and {value.dtype}")
        mine.copy_(value)
    engine.load_weights(engine.policy, push.version)


def as_in_training(policy: Policy) -> torch.autocast:
    """The autocast in which Lightning runs the passes of a stage: under mixed precision alone."""
    width = policy.compute_dtype.itemsize
    mixed = any(each.requires_grad and each.dtype.itemsize > width for each in policy.parameters())
    return torch.autocast(policy.banned_ids.device.type, dtype=policy.compute_dtype, enabled=mixed)


def _sampled(engine: HFEngine, order: SamplingOrder) -> TimedRollout:
    engine.policy.temperature = order.temperature
    started, clock = time.time(), time.monotonic()
    with as_in_training(engine.policy):
        rollout = engine.generate(order.prompts, **order.arguments)
    rollout, seconds = rollout.to("cpu"), time.monotonic() - clock
    return TimedRollout(rollout=rollout, seconds=seconds, started_s=started, ended_s=started + seconds)


def _reason(error: BaseException) -> str:
    """A clause about a failure."""
    if isinstance(error, MmrlError):
        return str(error)
    found = refusal(error)
    return f"{type(error).__name__}: {first_line(error)}" if found is None else found.problem
