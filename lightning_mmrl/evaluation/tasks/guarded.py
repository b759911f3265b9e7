"""Runs a judge in a process of its own that can be killed, since verifiers can hang on hostile answers."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lightning_mmrl.errors import FOREIGN_FAILURES, ConfigError
from lightning_mmrl.types.records import Completion, Sample
from lightning_mmrl.workers.pool import DeadlinePool, WorkerError
from lightning_mmrl.workers.serving import Limits

Judge = Callable[[Sample, Completion], float | None]
"""Scores a completion as a reward does; a right answer gets at least 1."""
MEMORY_BYTES = 4_000_000_000
"""Bytes that a judge's process may allocate beyond its memory at the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The value of a judge, or the reason why there is none."""

    value: float | None
    problem: str | None = None


class GuardedJudge:
    """Calls a judge in one killable process, which starts with the first call and ends with this object.

    Args:
        judge: The judge; it must be picklable.
        deadline_s: Seconds that one call may take. After half of them an exception interrupts the call; after all of
            them its process is killed and replaced.
    """

    def __init__(self, judge: Judge, deadline_s: float) -> None:
        self._judge = judge
        self._deadline_s = deadline_s
        self._pool: DeadlinePool | None = None

    def __call__(self, sample: Sample, completion: Completion) -> Verdict:
        """Judges one completion.

        Raises:
            ConfigError: The judge cannot be sent to a process, or the process cannot start.
        """
        try:
            [outcome] = self._started().map([(sample, completion)])
            if outcome.lost:  # once more, since another cause may have killed the process
                [outcome] = self._started().map([(sample, completion)])
        except WorkerError as error:
            raise ConfigError(f"the judge {type(self._judge).__name__} cannot run: {error}") from error
        return outcome.value if outcome.error is None else Verdict(value=None, problem=outcome.error)

    def _started(self) -> DeadlinePool:
        if self._pool is None or self._pool.closed:
            self._pool = DeadlinePool(
                partial(_verdict, self._judge),
                num_workers=1,
                deadline_s=self._deadline_s,
                limits=Limits(soft_deadline_s=self._deadline_s / 2, memory_bytes=MEMORY_BYTES),
                process_name="mmrl-judge",
            )
            weakref.finalize(self, self._pool.close)
        return self._pool


def _verdict(judge: Judge, item: tuple[Sample, Completion]) -> Verdict:
    try:
        value = judge(*item)
    except FOREIGN_FAILURES as error:  # a failing judge must not end the run
        return Verdict(value=None, problem=str(error) or type(error).__name__)
    if isinstance(value, int | float):
        return Verdict(value=float(value))
    return Verdict(value=None, problem=f"the judge returned {value!r}, not a number")
