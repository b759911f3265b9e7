"""Computes bootstrap intervals of metrics by resampling speakers, since clips of one speaker are not independent.

Percentile bootstrap over clusters (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13). Each
resample is a vector of multinomial weights of units, and each metric is a function of sums over samples, such as a
confusion matrix. So all resampled sums are one product of the weights [R, S] and the sums of the units [S, D].
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import MeanScore, Task
from lightning_mmrl.settings.rules import check_rules
from lightning_mmrl.settings.run import EvaluationSettings

Unit = Literal["speaker", "clip"]

# Maximum number of weights in memory at once (32 MB).
_MAX_WEIGHTS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A point estimate with its percentile interval; `unit` says what was resampled."""

    estimate: float
    low: float
    high: float
    level: float
    num_resamples: int
    unit: Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterBootstrap:
    """Percentile bootstrap over speakers, or over clips if speakers are unknown; the seed determines the result.

    Speakers are resampled if every sample has one and there are at least two. A class that is missing in a resample
    is left out of its UAR. With few speakers, percentile intervals are too narrow.

    Raises:
        ConfigError: `level` is not in (0, 1) or `num_resamples` is below 1.
    """

    settings: EvaluationSettings = field(default_factory=EvaluationSettings)
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ConfigError(f"bootstrap.level is {self.level}; give a fraction between 0 and 1, such as 0.95")
        check_rules(self.settings, "evaluation")

    def intervals(self, judgements: Sequence[Judgement], task: Task) -> dict[str, Interval]:
        """Returns the intervals of the task's metrics with `Measure.interval`.

        Raises:
            DataError: There are no judgements, or one is of another task.
        """
        unit, ids = _units(judgements)
        sums = task.unit_sums(judgements, ids, int(ids.max()) + 1)
        total, resampled = sums.sum(0), self._resampled(sums)
        return {
            name: self._interval(float(statistic(total)), statistic(resampled), unit)
            for name, statistic in ((each.name, task.statistic(each.name)) for each in task.measures if each.interval)
        }

    def paired_difference(
        self, candidate: Sequence[Judgement], baseline: Sequence[Judgement], task: Task | MeanScore
    ) -> Interval:
        """Returns the interval of the candidate's headline metric minus the baseline's, for equally resampled units.

        The order of the judgements does not matter.

        Raises:
            DataError: The two sets of judgements have different samples, a repeated sample, or different truths or
                speakers.
        """
        unit, ids = _units(candidate)
        by_id = {each.sample_id: each for each in baseline}
        samples = {each.sample_id for each in candidate}
        if samples != by_id.keys():
            example = min(samples ^ by_id.keys())
            raise DataError(f"only one of the two sets has sample {example!r}; evaluate both on the same samples")
        if len(candidate) != len(samples) or len(baseline) != len(samples):
            found = f"{len(candidate)} and {len(baseline)} predictions of {len(samples)} samples"
            raise DataError(f"{found}; remove repeated ones")
        aligned = [by_id[each.sample_id] for each in candidate]
        for ours, theirs in zip(candidate, aligned, strict=True):
            if (ours.truth, ours.speaker) != (theirs.truth, theirs.speaker):
                raise DataError(
                    f"sample {ours.sample_id!r} has another truth or speaker in the two sets; use one manifest"
                )
        sums = np.stack([task.unit_sums(each, ids, int(ids.max()) + 1) for each in (candidate, aligned)], axis=1)
        statistic = task.statistic(task.headline)
        total, resampled = statistic(sums.sum(0)), statistic(self._resampled(sums))
        return self._interval(float(total[0] - total[1]), resampled[:, 0] - resampled[:, 1], unit)

    def _resampled(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weighted sums over units, [S, ...] to [R, ...], in chunks of resamples to limit the memory."""
        num_units = len(sums)
        generator = np.random.default_rng(self.seed)
        step = max(1, _MAX_WEIGHTS // num_units)
        flat = sums.reshape(num_units, -1)
        resampled = [
            resample_weights(generator, num_units, min(step, self.settings.num_resamples - start)) @ flat
            for start in range(0, self.settings.num_resamples, step)
        ]
        return np.concatenate(resampled).reshape(self.settings.num_resamples, *sums.shape[1:])

    def _interval(self, estimate: float, resampled: NDArray[np.float64], unit: Unit) -> Interval:
        tail = (1 - self.level) / 2
        low, high = np.quantile(resampled, [tail, 1 - tail])
        return Interval(
            estimate=estimate,
            low=float(low),
            high=float(high),
            level=self.level,
            num_resamples=self.settings.num_resamples,
            unit=unit,
        )


def resample_weights(generator: np.random.Generator, num_units: int, num_resamples: int) -> NDArray[np.float64]:
    """Number of times that each resample contains each unit, [R, S]; every row sums to S."""
    chances = np.full(num_units, 1.0 / num_units)
    return generator.multinomial(num_units, chances, size=num_resamples).astype(np.float64)


def _units(judgements: Sequence[Judgement]) -> tuple[Unit, NDArray[np.int64]]:
    """The kind of unit to resample, and the index of the unit of each judgement, [N]."""
    if not judgements:
        raise DataError("there are no predictions to resample; evaluate at least one sample")
    speakers = [each.speaker for each in judgements]
    if None in speakers or len(set(speakers)) < 2:
        return "clip", np.arange(len(judgements))
    return "speaker", np.unique(np.array(speakers), return_inverse=True)[1].astype(np.int64)
