"""Scores many completions: in the calling process, or in spawned processes that can be killed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from lightning_mmrl.errors import ConfigError, RewardError
from lightning_mmrl.types.records import Completion, Sample, Score
from lightning_mmrl.workers.pool import DeadlinePool, Outcome, WorkerError


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


@dataclass(frozen=True, slots=True)
class _ScoreTask:
    """What a worker calls."""

    reward: Scorer

    def __call__(self, item: tuple[Sample, Completion]) -> Score:
        return _score_safely(self.reward, *item)


class RewardPool:
    """Scores in `num_workers` killable processes; see `DeadlinePool` for what a deadline and a death cost.

    An item that takes longer than `deadline_s` seconds becomes invalid, and so does what `batch_budget_s` seconds do
    not suffice for: a call always returns.

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
        self._batch_budget_s = batch_budget_s
        try:
            self._pool = DeadlinePool(
                _ScoreTask(reward), num_workers=num_workers, deadline_s=deadline_s, process_name="mmrl-reward"
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
            outcomes = self._pool.map(_paired(samples, completions), budget_s=self._batch_budget_s)
        except WorkerError as error:
            raise RewardError(f"rewards: {error}") from error
        return _shaped_like(completions, [_as_score(outcome) for outcome in outcomes])

    def close(self) -> None:
        """Ends all workers; those still busy are killed. May be called again."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _as_score(outcome: Outcome) -> Score:
    return _invalid(outcome.error) if outcome.error is not None else outcome.value


def _score_safely(reward: Scorer, sample: Sample, completion: Completion) -> Score:
    try:
        score = reward.score(sample, completion)
    except Exception as error:  # whatever a verifier raises is its failure, not the run's
        return _invalid(f"{type(error).__name__}: {error}")
    return score if isinstance(score, Score) else _invalid(f"returned {score!r}, not a Score")


def _invalid(reason: str) -> Score:
    return Score(total=0.0, components={}, valid=False, reason=reason)


def _paired(samples: Sequence[Sample], completions: Sequence[Sequence[Completion]]) -> list[tuple[Sample, Completion]]:
    return [(sample, each) for sample, group in zip(samples, completions, strict=True) for each in group]


def _shaped_like(completions: Sequence[Sequence[Completion]], scores: list[Score]) -> list[list[Score]]:
    remaining = iter(scores)
    return [[next(remaining) for _ in group] for group in completions]
