"""Bootstrap intervals of WAR and UAR that resample speakers, since clips of one speaker are not independent.

Percentile bootstrap over clusters (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13). Each
resample is a vector of multinomial weights of units. So all resampled confusion matrices are one product of the
weights [R, S] and the confusion matrices of the units [S, K, K + 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.evaluation.metrics import UNPARSED, uar, war
from lightning_mmrl.evaluation.records import Prediction, class_indices
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

    Speakers are resampled if every prediction has one and there are at least two. A class that is missing in a resample
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

    def intervals(self, predictions: Sequence[Prediction], labels: Sequence[str]) -> dict[str, Interval]:
        """Intervals of `war` and `uar`.

        Raises:
            DataError: There are no predictions, or one has a label that is not in `labels`.
        """
        unit, ids = _units(predictions)
        counts = _unit_counts(predictions, labels, ids)
        total, resampled = counts.sum(0), self._resampled(counts)
        return {
            "war": self._interval(float(war(total)), war(resampled), unit),
            "uar": self._interval(float(uar(total)), uar(resampled), unit),
        }

    def paired_uar_difference(
        self, candidate: Sequence[Prediction], baseline: Sequence[Prediction], labels: Sequence[str]
    ) -> Interval:
        """Interval of UAR(candidate) - UAR(baseline), where each resample has the same units of both.

        The order of the predictions does not matter.

        Raises:
            DataError: The two sets of predictions have different samples, a repeated sample, or different truths or
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
        both = [_unit_counts(each, labels, ids) for each in (candidate, aligned)]
        counts = np.stack(both, axis=1)
        total, resampled = uar(counts.sum(0)), uar(self._resampled(counts))
        return self._interval(float(total[0] - total[1]), resampled[:, 0] - resampled[:, 1], unit)

    def _resampled(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weighted sums over units, [S, ...] to [R, ...], in chunks of resamples to limit the memory."""
        num_units = len(counts)
        generator = np.random.default_rng(self.seed)
        step = max(1, _MAX_WEIGHTS // num_units)
        flat = counts.reshape(num_units, -1)
        sums = [
            resample_weights(generator, num_units, min(step, self.settings.num_resamples - start)) @ flat
            for start in range(0, self.settings.num_resamples, step)
        ]
        return np.concatenate(sums).reshape(self.settings.num_resamples, *counts.shape[1:])

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


def _units(predictions: Sequence[Prediction]) -> tuple[Unit, NDArray[np.int64]]:
    """The kind of unit to resample, and the index of the unit of each prediction, [N]."""
    if not predictions:
        raise DataError("there are no predictions to resample; evaluate at least one sample")
    speakers = [each.speaker for each in predictions]
    if None in speakers or len(set(speakers)) < 2:
        return "clip", np.arange(len(predictions))
    return "speaker", np.unique(np.array(speakers), return_inverse=True)[1].astype(np.int64)


def _unit_counts(
    predictions: Sequence[Prediction], labels: Sequence[str], units: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The confusion matrix of each unit, [S, K, K + 1]."""
    truth, predicted = class_indices(predictions, labels)
    size = len(labels)
    counts = np.zeros((units.max() + 1, size, size + 1))
    np.add.at(counts, (units, truth, np.where(predicted == UNPARSED, size, predicted)), 1)
    return counts
