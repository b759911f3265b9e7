"""Computes bootstrap intervals of metrics by resampling speakers, since clips of one speaker are not independent.

Expanded percentile bootstrap over clusters. Each resample is a vector of multinomial weights of units, and each metric
is a function of sums over samples, such as a confusion matrix. So all resampled sums are one product of the weights
[R, S] and the sums of the units [S, D]. `tail_of` says at which quantiles of the resampled metrics an interval ends.

tools/campaigns/interval_coverage.py measures how often the intervals hold the truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import MeanScore, Statistic, Task
from lightning_mmrl.settings.rules import check_rules
from lightning_mmrl.settings.run import EvaluationSettings

Unit = Literal["speaker", "clip"]

LEAST_UNITS = 15
"""With fewer speakers, or fewer clips where clips are resampled, an interval is not reliable."""

# Maximum number of weights in memory at once (32 MB).
_MAX_WEIGHTS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A point estimate with its bootstrap interval; the last three are None in files of earlier versions.

    Attributes:
        estimate: The metric, or the difference of a metric.
        low: Lower end.
        high: Upper end.
        level: The share of such intervals that hold the truth.
        num_resamples: Number of resamples.
        unit: What was resampled: `speaker`, or `clip` for single samples.
        num_units: Number of speakers or clips.
        effective_units: Their effective number, see `effective_number`.
        reliable: Whether there are at least `LEAST_UNITS` speakers, or as many clips if speakers are unknown.
    """

    estimate: float
    low: float
    high: float
    level: float
    num_resamples: int
    unit: Unit
    num_units: int | None = None
    effective_units: float | None = None
    reliable: bool | None = None

    @property
    def caution(self) -> str | None:
        """Says in words why the interval is to be read with caution; None if there is no reason."""
        return caution_of(self.unit, self.reliable)


def caution_of(unit: str, reliable: bool | None) -> str | None:
    """Says in words why an interval is to be read with caution; None if there is no reason.

    >>> caution_of("speaker", False)
    'not reliable: fewer than 15 speakers'
    """
    if unit == "speaker":
        return f"not reliable: fewer than {LEAST_UNITS} speakers" if reliable is False else None
    single = "single samples were resampled"
    few = f"not reliable: fewer than {LEAST_UNITS} speakers or samples; {single}"
    return few if reliable is False else f"speakers are not known, so {single}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """What is resampled: `index` [N] says which of the `number` units each sample belongs to."""

    unit: Unit
    index: NDArray[np.int64]
    number: int
    reliable: bool

    @classmethod
    def of(cls, judgements: Sequence[Judgement]) -> "Units":
        """Speakers, if every sample has one and there are at least two; otherwise single samples.

        Raises:
            DataError: There are no judgements.
        """
        if not judgements:
            raise DataError("there are no predictions to resample; evaluate at least one sample")
        speakers = [each.speaker for each in judgements]
        known = None not in speakers
        number = len(set(speakers)) if known else len(speakers)
        reliable = number >= LEAST_UNITS
        if not known or number < 2:
            return cls(unit="clip", index=np.arange(len(speakers)), number=len(speakers), reliable=reliable)
        index = np.unique(np.array(speakers), return_inverse=True)[1].astype(np.int64)
        return cls(unit="speaker", index=index, number=number, reliable=reliable)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of samples of each unit, [S]."""
        return np.bincount(self.index, minlength=self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterBootstrap:
    """Expanded percentile bootstrap over speakers, or over clips if speakers are unknown, see `Units.of`.

    A class that is missing in a resample is left out of its UAR. The seed determines the result.

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
        units = Units.of(judgements)
        sums = task.unit_sums(judgements, units.index, units.number)
        total, resampled = sums.sum(0), self.resampled(sums)
        return {
            name: self._interval(float(statistic(total)), statistic(resampled), units)
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
        units = Units.of(candidate)
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
        sums = np.stack([task.unit_sums(each, units.index, units.number) for each in (candidate, aligned)], axis=1)
        statistic = task.statistic(task.headline)
        total, resampled = statistic(sums.sum(0)), statistic(self.resampled(sums))
        return self._interval(float(total[0] - total[1]), resampled[:, 0] - resampled[:, 1], units)

    def of_rows(
        self, judgements: Sequence[Judgement], rows: NDArray[np.float64], statistic: Statistic
    ) -> Interval | None:
        """Returns the interval of a function of sums over samples; None if it is not defined for all samples together.

        Resamples in which it is not defined, such as a share of no answers, do not count.

        Args:
            judgements: The samples, whose speakers are resampled.
            rows: What each sample adds to the sums, [N, D].
            statistic: Maps sums [..., D] to values [...]; NaN where it is not defined.
        """
        units = Units.of(judgements)
        sums = np.zeros((units.number, rows.shape[1]))
        np.add.at(sums, units.index, rows)
        estimate, resampled = float(statistic(sums.sum(0))), statistic(self.resampled(sums))
        if not np.isfinite(estimate):
            return None
        return self._interval(estimate, resampled[np.isfinite(resampled)], units)

    def resampled(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
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

    def _interval(self, estimate: float, resampled: NDArray[np.float64], units: Units) -> Interval:
        effective = effective_number(units.sizes)
        tail = tail_of(effective, self.level)
        low, high = np.quantile(resampled, [tail, 1 - tail])
        return Interval(
            estimate=estimate,
            low=float(low),
            high=float(high),
            level=self.level,
            num_resamples=self.settings.num_resamples,
            unit=units.unit,
            num_units=units.number,
            effective_units=effective,
            reliable=units.reliable,
        )


def effective_number(sizes: ArrayLike) -> float:
    """Effective number of units of unequal sizes n_s, (sum_s n_s)^2 / sum_s n_s^2; the plain number if all are equal.

    A mean over all samples weighs each unit by its size. Kish's effective sample size (Survey Sampling, 1965) says how
    many units of one size would tell as much. That unequal clusters leave fewer degrees of freedom than their plain
    number is shown by Carter, Schnepel and Steigerwald (Review of Economics and Statistics 99, 2017).

    >>> effective_number([4, 4, 4]), effective_number([8, 1, 1])
    (3.0, 1.5151515151515151)
    """
    found = np.asarray(sizes, dtype=np.float64)
    return float(found.sum() ** 2 / np.square(found).sum())


def tail_of(effective: float, level: float) -> float:
    """The share of resampled values beyond each end of an interval over S units: Phi(-sqrt(S / (S - 1)) t).

    Phi is the normal distribution, and t the (1 + level) / 2 quantile of Student's with S - 1 degrees of freedom. Plain
    percentiles correspond to a normal interval whose variance divides by S, which is too narrow for few units. The
    expanded percentiles have the width of a t interval, and keep the asymmetry of the resampled values (Hesterberg,
    What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015; arXiv:1411.5279).
    **Deviation**: S is the effective number of units.

    >>> round(tail_of(25, 0.95), 5), round(tail_of(1e6, 0.95), 5)
    (0.01758, 0.025)
    """
    from scipy.special import ndtr, stdtrit  # loads slowly, and commands that compute no interval do without

    if effective <= 1:  # a single unit, whose resamples are all the same
        return 0.0
    t = stdtrit(effective - 1, (1 + level) / 2)
    return float(ndtr(-sqrt(effective / (effective - 1)) * t))


def resample_weights(generator: np.random.Generator, num_units: int, num_resamples: int) -> NDArray[np.float64]:
    """Number of times that each resample contains each unit, [R, S]; every row sums to S."""
    chances = np.full(num_units, 1.0 / num_units)
    return generator.multinomial(num_units, chances, size=num_resamples).astype(np.float64)
