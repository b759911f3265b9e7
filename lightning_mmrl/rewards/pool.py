"""Scores many completions: in the calling process, or in spawned processes that can be killed."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol

from lightning_mmrl.errors import FOREIGN_FAILURES, ConfigError, RewardError
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.settings.rules import check_rules
from lightning_mmrl.types.records import Completion, Sample, Score
from lightning_mmrl.workers.pool import DeadlinePool, WorkerError
from lightning_mmrl.workers.serving import CallResult, Limits

MEGABYTE = 1_000_000


class Scorer(Protocol):
    """A reward that a pool runs, such as `WeightedReward`; a pool of processes needs a picklable one."""

    def score(self, sample: Sample, completion: Completion) -> Score: ...


class InlineRewards(AbstractContextManager["InlineRewards"]):
    """Scores in the calling process without a deadline, for rewards that are cheap and cannot hang.

    >>> from lightning_mmrl.rewards.compose import WeightedReward
    >>> from lightning_mmrl.rewards.think_answer_format import ThinkAnswerFormat
    >>> settings = RewardSettings(weights={"format": 1.0})
    >>> reward = WeightedReward(components={"format": ThinkAnswerFormat()}, settings=settings)
    >>> completion = Completion(text="no", num_tokens=1, truncated=False)
    >>> with InlineRewards(reward) as rewards:
    ...     rewards.score([Sample(id="a", messages=())], [[completion]])[0][0].total
    0.0
    """

    def __init__(self, reward: Scorer, settings: RewardSettings | None = None) -> None:
        self._reward = reward
        self.max_invalid_rate = (settings or RewardSettings()).max_invalid_rate

    def score(self, samples: Sequence[Sample], completions: Sequence[Sequence[Completion]]) -> list[list[Score]]:
        """Scores the completions `completions[i]` of each `samples[i]`; the result has the same shape."""
        pairs = zip(samples, completions, strict=True)
        return [[_score_safely(self._reward, (sample, each)) for each in group] for sample, group in pairs]

    def close(self) -> None:
        """Does nothing, because there are no processes to end."""

    def __exit__(self, *_: object) -> None:
        self.close()


class RewardPool(AbstractContextManager["RewardPool"]):
    """Scores in `num_workers` processes that can be killed; see `DeadlinePool` for deadlines and lost workers.

    A score is invalid if its completion takes too long or too much memory, crashes, or kills its process twice; the
    score names the part that was running. Completions for which the time budget does not suffice are invalid too, so
    that a call always returns.

    Args:
        reward: The reward.
        settings: Number of processes (at least one), deadlines and limits.

    Raises:
        ConfigError: A number is out of range, or the reward cannot be pickled.
        RewardError: A worker cannot start, for example because it cannot import the reward.
    """

    def __init__(
        self,
        reward: Scorer,
        settings: RewardSettings,
    ) -> None:
        check_rules(settings, "rewards")
        if settings.num_workers < 1:
            raise ConfigError(f"rewards.num_workers is {settings.num_workers}; a pool must have at least 1")
        self.max_invalid_rate = settings.max_invalid_rate
        self._batch_budget_s = settings.batch_budget_s
        limit = settings.memory_limit_mb
        memory = None if limit is None else limit * MEGABYTE
        try:
            self._pool = DeadlinePool(
                partial(_score_safely, reward),
                num_workers=settings.num_workers,
                deadline_s=settings.deadline_s,
                limits=Limits(soft_deadline_s=settings.soft_deadline_s, memory_bytes=memory),
                deadline_key="rewards.deadline_s",
                process_name="mmrl-reward",
            )
        except WorkerError as error:
            kind = ConfigError if "cannot be sent" in str(error) else RewardError
            raise kind(f"rewards: {error}") from error

    def score(self, samples: Sequence[Sample], completions: Sequence[Sequence[Completion]]) -> list[list[Score]]:
        """Scores the completions `completions[i]` of each `samples[i]`; the result has the same shape.

        Raises:
            RewardError: The pool is closed, or a replacement worker cannot start.
        """
        if self._pool.closed:
            raise RewardError("the reward pool is closed; score before close()")
        try:
            pairs = zip(samples, completions, strict=True)
            outcomes = self._judged([(sample, each) for sample, group in pairs for each in group])
        except WorkerError as error:
            raise RewardError(f"rewards: {error}") from error
        scores = iter(_invalid(each.error, each.doing) if each.error is not None else each.value for each in outcomes)
        return [[next(scores) for _ in group] for group in completions]

    @contextmanager
    def scoring(
        self, samples: Sequence[Sample], completions: Sequence[Sequence[Completion]]
    ) -> Iterator[Callable[[], list[list[Score]]]]:
        """Scores during a block of other work; yields a function that waits for what `score` returns or raises.

        An error that leaves the block kills the processes, so that nobody waits for them; the pool is then unusable.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="mmrl-scores") as thread:
            try:
                yield thread.submit(self.score, samples, completions).result
            except BaseException:
                self._pool.kill()
                raise

    def _judged(self, items: Sequence[tuple[Sample, Completion]]) -> list[CallResult]:
        """An outcome for each item; lost items are tried once more, since another cause may have killed their worker.

        Both attempts share the time budget.
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
        """Ends all workers, and kills busy ones; may be called again."""
        self._pool.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _score_safely(reward: Scorer, item: tuple[Sample, Completion]) -> Score:
    try:
        score = reward.score(*item)
    except FOREIGN_FAILURES as error:  # a failing verifier must not end the run
        return _invalid(f"{type(error).__name__}: {error}")
    return score if isinstance(score, Score) else _invalid(f"returned {score!r}, not a Score")


def _invalid(reason: str, failed: str | None = None) -> Score:
    named = reason if failed is None else f"{failed}: {reason}"
    return Score(total=0.0, components={}, valid=False, reason=named, failed=failed)
