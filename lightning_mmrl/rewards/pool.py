"""Scores many completions: in the calling process, or in spawned processes that can be killed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from lightning_mmrl.errors import FOREIGN_FAILURES, ConfigError, RewardError
from lightning_mmrl.types.records import Completion, Sample, Score
from lightning_mmrl.workers.pool import DeadlinePool, WorkerError
from lightning_mmrl.workers.serving import Limits, Outcome

MEGABYTE = 1_000_000


class Scorer(Protocol):
    """What a pool runs, such as `WeightedReward`; to be used in processes it must be picklable."""

    def score(self, sample: Sample, completion: Completion) -> Score: ...


class InlineRewards:
    """Scores in the calling process, without a deadline: for rewards that are cheap and cannot hang.

    >>> from lightning_mmrl.rewards.compose import WeightedReward
    >>> from lightning_mmrl.rewards.think_answer_format import ThinkAnswerFormat
    >>> reward = WeightedReward(components={"format": ThinkAnswerFormat()}, weights={"format": 1.0})
    >>> completion = Completion(text="no", num_tokens=1, truncated=False)
    >>> with InlineRewards(reward) as rewards:
    ...     rewards.score([Sample(id="a", messages=())], [[completion]])[0][0].total
    0.0
    """

    def __init__(self, reward: Scorer, *, max_invalid_rate: float = 1.0) -> None:
        self._reward = reward
        self.max_invalid_rate = max_invalid_rate

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


@dataclass(frozen=True, slots=True)
class _ScoreTask:
    """What a worker calls."""

    reward: Scorer

    def __call__(self, item: tuple[Sample, Completion]) -> Score:
        return _score_safely(self.reward, *item)


class RewardPool:
    """Scores in `num_workers` killable processes; see `DeadlinePool` for what a deadline and a death cost.

    An item that takes too long, takes too much memory, crashes or takes its process down twice becomes invalid, named
    for the part that was running, and so does what the budget does not suffice for: a call always returns.

    Args:
        reward: What to score with.
        num_workers: Processes.
        deadline_s: Seconds for one completion; then its process is killed and replaced.
        soft_deadline_s: Seconds after which an exception interrupts it, which costs no process; None: never.
        batch_budget_s: Seconds for one call of `score`.
        memory_limit_mb: Megabytes that a process may take on top of what it starts with (on Linux); None: no limit.
        max_invalid_rate: The share of invalid scores of an iteration above which training stops.

    Raises:
        ConfigError: a number is out of range or the reward cannot be pickled.
        RewardError: a worker cannot start, for example because the reward cannot be imported there.
    """

    def __init__(
        self,
        reward: Scorer,
        *,
        num_workers: int = 2,
        deadline_s: float = 8.0,
        soft_deadline_s: float | None = None,
        batch_budget_s: float = 60.0,
        memory_limit_mb: int | None = None,
        max_invalid_rate: float = 1.0,
    ) -> None:
        _require_positive(
            num_workers=num_workers,
            deadline_s=deadline_s,
            soft_deadline_s=soft_deadline_s,
            batch_budget_s=batch_budget_s,
            memory_limit_mb=memory_limit_mb,
        )
        self.max_invalid_rate = max_invalid_rate
        self._batch_budget_s = batch_budget_s
        memory = None if memory_limit_mb is None else memory_limit_mb * MEGABYTE
        try:
            self._pool = DeadlinePool(
                _ScoreTask(reward),
                num_workers=num_workers,
                deadline_s=deadline_s,
                limits=Limits(soft_deadline_s=soft_deadline_s, memory_bytes=memory),
                deadline_key="rewards.deadline_s",
                process_name="mmrl-reward",
            )
        except WorkerError as error:
            kind = ConfigError if "cannot be sent" in str(error) else RewardError
            raise kind(f"rewards: {error}") from error

    def score(self, samples: Sequence[Sample], completions: Sequence[Sequence[Completion]]) -> list[list[Score]]:
        """Scores `completions[i]`, all of `samples[i]`; the result has the same shape.

        Raises:
            RewardError: the pool is closed, or a replacement worker cannot start.
        """
        if self._pool.closed:
            raise RewardError("the reward pool is closed; score before close()")
        try:
            outcomes = self._judged(_paired(samples, completions))
        except WorkerError as error:
            raise RewardError(f"rewards: {error}") from error
        return _shaped_like(completions, [_as_score(outcome) for outcome in outcomes])

    def _judged(self, items: Sequence[tuple[Sample, Completion]]) -> list[Outcome]:
        """An outcome for each item; lost ones are tried once more, since something else may have killed their worker.

        Both attempts share the budget.
        """
        end = time.monotonic() + self._batch_budget_s
        outcomes = self._pool.map(items, budget_s=self._batch_budget_s)
        lost = [index for index, outcome in enumerate(outcomes) if outcome.lost]
        left_s = end - time.monotonic()
        if lost and left_s > 0:
            again = self._pool.map([items[index] for index in lost], budget_s=left_s)
            for index, outcome in zip(lost, again, strict=True):
                if outcome.error is None:
                    outcomes[index] = outcome
        return outcomes

    def close(self) -> None:
        """Ends all workers; those still busy are killed. May be called again."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _require_positive(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and value <= 0:
            raise ConfigError(f"rewards.pool.{name} is {value}; it must be above 0")


def _as_score(outcome: Outcome) -> Score:
    return _invalid(outcome.error, outcome.doing) if outcome.error is not None else outcome.value


def _score_safely(reward: Scorer, sample: Sample, completion: Completion) -> Score:
    try:
        score = reward.score(sample, completion)
    except FOREIGN_FAILURES as error:  # whatever a verifier raises is its failure, not the run's
        return _invalid(f"{type(error).__name__}: {error}")
    return score if isinstance(score, Score) else _invalid(f"returned {score!r}, not a Score")


def _invalid(reason: str, failed: str | None = None) -> Score:
    named = reason if failed is None else f"{failed}: {reason}"
    return Score(total=0.0, components={}, valid=False, reason=named, failed=failed)


def _paired(samples: Sequence[Sample], completions: Sequence[Sequence[Completion]]) -> list[tuple[Sample, Completion]]:
    return [(sample, each) for sample, group in zip(samples, completions, strict=True) for each in group]


def _shaped_like(completions: Sequence[Sequence[Completion]], scores: list[Score]) -> list[list[Score]]:
    remaining = iter(scores)
    return [[next(remaining) for _ in group] for group in completions]
