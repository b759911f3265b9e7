"""Scores many completions: in the calling process, or in spawned processes that can be killed."""

import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Protocol, Self

from lightning_mmrl.errors import ConfigError, RewardError
from lightning_mmrl.types.records import Completion, Sample, Score

_START_LIMIT_S = 120.0
_EXIT_GRACE_S = 1.0


class Scorer(Protocol):
    """What a pool runs, such as `WeightedReward`; to be used in processes it must be picklable."""

    def score(self, sample: Sample, completion: Completion) -> Score: ...


class InlineRewards:
    """Scores in the calling process, without a deadline: for rewards that are cheap and cannot hang.

    >>> from lightning_mmrl.rewards.compose import WeightedReward
    >>> from lightning_mmrl.rewards.think_answer_format import ThinkAnswerFormat
    >>> reward = WeightedReward(parts={"format": ThinkAnswerFormat()}, weights={"format": 1.0})
    >>> completion = Completion(text="no", num_tokens=1, truncated=False)
    >>> with InlineRewards(reward) as rewards:
    ...     rewards.score([Sample(id="a", messages=())], [[completion]])[0][0].total
    0.0
    """

    def __init__(self, reward: Scorer) -> None:
        self._reward = reward

    def score(self, samples: Sequence[Sample], completions: Sequence[Sequence[Completion]]) -> list[list[Score]]:
        """Scores `completions[i]`, all of `samples[i]`; the result has the same shape."""
        scores = [_score_safely(self._reward, *item) for item in _paired(samples, completions)]
        return _shaped_like(completions, scores)

    def close(self) -> None:
        """Nothing to release."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RewardPool:
    """Scores in `num_workers` spawned processes, killed when an item takes longer than `deadline_s` seconds.

    Verifiers hang, die and call `signal.alarm` (math-verify needs a main thread; huggingface/Math-Verify#55,
    verl#5839), so each item gets a main thread of its own process and a wall-clock deadline. A killed or dead worker
    is replaced; only the item it held becomes invalid. What `batch_budget_s` seconds do not suffice for becomes
    invalid too, so a call always returns. A worker leads its own process group: what a verifier started dies with it.

    Build it before CUDA is initialized and close it at the end of the run. The reward is pickled once; it is imported
    anew in each worker, so a script that builds a pool needs the `if __name__ == "__main__"` guard.

    Raises:
        ConfigError: a number is out of range or the reward cannot be pickled.
        RewardError: a worker cannot start, for example because the reward cannot be imported there.
    """

    def __init__(
        self, reward: Scorer, *, num_workers: int = 2, deadline_s: float = 8.0, batch_budget_s: float = 60.0
    ) -> None:
        for name, value in (
            ("num_workers", num_workers),
            ("deadline_s", deadline_s),
            ("batch_budget_s", batch_budget_s),
        ):
            if value <= 0:
                raise ConfigError(f"rewards.pool.{name} is {value}; it must be above 0")
        self._payload = _pickled(reward)
        self._deadline_s = deadline_s
        self._batch_budget_s = batch_budget_s
        self._workers: list[_Worker] = []
        try:
            for _ in range(num_workers):
                self._workers.append(_Worker(self._payload))
            for worker in self._workers:
                worker.await_ready()
        except BaseException:
            self.close()
            raise

    def score(self, samples: Sequence[Sample], completions: Sequence[Sequence[Completion]]) -> list[list[Score]]:
        """Scores `completions[i]`, all of `samples[i]`; the result has the same shape.

        Raises:
            RewardError: the pool is closed, or a replacement worker cannot start, which closes it.
            ValueError: there is not one group of completions for each sample.
        """
        if not self._workers:
            raise RewardError("the reward pool is closed; score before close()")
        batch = _Batch(items=_paired(samples, completions), end=time.monotonic() + self._batch_budget_s)
        try:
            while batch.num_unsettled and time.monotonic() < batch.end:
                self._assign(batch)
                self._collect(batch)
                self._enforce_deadlines(batch)
        except RewardError:
            self.close()
            raise
        finally:
            self._abandon_items()
        return _shaped_like(completions, batch.final_scores(f"batch budget of {self._batch_budget_s} s exceeded"))

    def close(self) -> None:
        """Ends all workers; those still busy are killed. May be called again."""
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
                    worker.give(item, batch.items[item], self._deadline_s)
                except OSError:  # it died while idle, which is no fault of the item
                    batch.pending.appendleft(item)
                    self._replace(slot)
                    break
                except Exception as error:
                    batch.settle(item, _invalid(f"cannot be sent to a worker: {error}"))

    def _collect(self, batch: "_Batch") -> None:
        """Waits until a worker reports, a deadline passes or the budget ends, and takes what is there."""
        waiting = {slot: worker for slot, worker in enumerate(self._workers) if not worker.idle}
        until = min([batch.end, *(worker.deadline for worker in waiting.values())])
        connections = [worker.connection for worker in waiting.values()]
        reported = wait(connections, timeout=max(0.0, until - time.monotonic())) if connections else []
        for slot, worker in waiting.items():
            if worker.connection in reported:
                self._take(slot, worker, batch)

    def _take(self, slot: int, worker: "_Worker", batch: "_Batch") -> None:
        try:
            score = worker.take()
        except (EOFError, OSError) as error:
            if worker.item is None:
                raise worker.start_failure() from error
            worker.end(grace_s=_EXIT_GRACE_S)
            batch.settle(worker.item, _invalid(f"worker died with exit code {worker.process.exitcode}"))
            self._replace(slot)
            return
        if score is not None and worker.item is not None:
            batch.settle(worker.item, score)
            worker.item = None

    def _enforce_deadlines(self, batch: "_Batch") -> None:
        now = time.monotonic()
        for slot, worker in enumerate(self._workers):
            if worker.item is not None and now >= worker.deadline:
                batch.settle(worker.item, _invalid(f"deadline of {self._deadline_s} s exceeded"))
                self._replace(slot)
            elif not worker.ready and now >= worker.deadline:
                raise RewardError(f"a reward worker did not start within {_START_LIMIT_S} s")

    def _abandon_items(self) -> None:
        """Kills the workers that still hold an item, so that the next call does not meet an old result."""
        for slot, worker in enumerate(self._workers):
            if worker.item is not None:
                self._replace(slot)

    def _replace(self, slot: int) -> None:
        self._workers[slot].end(grace_s=0.0)
        self._workers[slot] = _Worker(self._payload)


@dataclass(slots=True, kw_only=True)
class _Batch:
    """The state of one call: `scores[i]` is None until item i is settled."""

    items: list[tuple[Sample, Completion]]
    end: float
    scores: list[Score | None] = field(init=False)
    pending: deque[int] = field(init=False)
    num_unsettled: int = field(init=False)

    def __post_init__(self) -> None:
        self.scores = [None] * len(self.items)
        self.pending = deque(range(len(self.items)))
        self.num_unsettled = len(self.items)

    def settle(self, item: int, score: Score) -> None:
        self.scores[item] = score
        self.num_unsettled -= 1

    def final_scores(self, unsettled_reason: str) -> list[Score]:
        return [_invalid(unsettled_reason) if score is None else score for score in self.scores]


class _Worker:
    """One process and what it is busy with; `deadline` is for its start until it is ready, then for its item."""

    def __init__(self, payload: bytes) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, payload), name="mmrl-reward", daemon=True)
        self.process.start()
        theirs.close()
        assert self.process.pid is not None
        self._group = self.process.pid
        self._ended = False
        self.item: int | None = None
        self.ready = False
        self.deadline = time.monotonic() + _START_LIMIT_S

    @property
    def idle(self) -> bool:
        return self.ready and self.item is None

    def await_ready(self) -> None:
        """Blocks until the reward is loaded."""
        if not self.connection.poll(max(0.0, self.deadline - time.monotonic())):
            raise RewardError(f"a reward worker did not start within {_START_LIMIT_S} s")
        try:
            self.take()
        except (EOFError, OSError) as error:
            raise self.start_failure() from error

    def start_failure(self) -> RewardError:
        """Ends a worker that died before it was ready and says how."""
        self.end(grace_s=_EXIT_GRACE_S)
        return RewardError(f"a reward worker died at its start with exit code {self.process.exitcode}")

    def give(self, item: int, task: tuple[Sample, Completion], deadline_s: float) -> None:
        self.connection.send(task)
        self.item, self.deadline = item, time.monotonic() + deadline_s

    def take(self) -> Score | None:
        """The score of the item, or None for the message that the worker is ready."""
        message = self.connection.recv()
        if isinstance(message, str):
            raise RewardError(f"a reward worker cannot load the reward: {message}")
        self.ready = True
        return message

    def end(self, grace_s: float) -> None:
        """Waits `grace_s` seconds for its exit, kills its process group and reaps it; later calls do nothing."""
        if self._ended:
            return
        self._ended = True
        wait([self.process.sentinel], timeout=grace_s)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group, signal.SIGKILL)
        self.process.kill()  # before its setsid it leads no group
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, payload: bytes) -> None:
    """Main loop of a worker: loads the reward, says so, then scores one item at a time until the pipe closes."""
    os.setsid()
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        reward = pickle.loads(payload)
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    with suppress(EOFError):
        while True:
            connection.send(_score_safely(reward, *connection.recv()))


def _exit_with_parent() -> None:
    """A verifier in an endless loop would outlive a killed training run."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.killpg(os.getpid(), signal.SIGKILL)


def _score_safely(reward: Scorer, sample: Sample, completion: Completion) -> Score:
    try:
        score = reward.score(sample, completion)
    except Exception as error:  # whatever a verifier raises is its failure, not the run's
        return _invalid(f"{type(error).__name__}: {error}")
    return score if isinstance(score, Score) else _invalid(f"returned {score!r}, not a Score")


def _invalid(reason: str) -> Score:
    return Score(total=0.0, components={}, valid=False, reason=reason)


def _pickled(reward: Scorer) -> bytes:
    try:
        return pickle.dumps(reward)
    except Exception as error:
        raise ConfigError(
            f"the reward {reward!r} cannot be sent to worker processes ({error}); use importable functions and classes"
        ) from error


def _paired(samples: Sequence[Sample], completions: Sequence[Sequence[Completion]]) -> list[tuple[Sample, Completion]]:
    return [(sample, each) for sample, group in zip(samples, completions, strict=True) for each in group]


def _shaped_like(completions: Sequence[Sequence[Completion]], scores: list[Score]) -> list[list[Score]]:
    remaining = iter(scores)
    return [[next(remaining) for _ in group] for group in completions]
