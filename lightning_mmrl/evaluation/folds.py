"""Metrics over folds: the plain average with its spread, and the answers of all folds pooled.

Published numbers of five-fold sets are averages over folds: DFEW (arXiv:2008.05924) is evaluated so, with WAR and UAR.
The spread over folds is no standard error, because the training clips of any two folds overlap: no unbiased estimate of
the variance of such an average exists (Bengio and Grandvalet, JMLR 5, 2004). So the interval is of the pooled answers,
in which each clip and each speaker occurs once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from lightning_mmrl.evaluation.intervals import ClusterBootstrap
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A metric over folds: its mean, its standard deviation (n - 1; None for one fold), and the folds that have it."""

    mean: float
    std: float | None
    num_folds: int


def over_folds(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, Spread]:
    """The spread of each metric; a fold without the metric, or with NaN, is left out of it.

    >>> over_folds({"1": {"war": 0.5}, "2": {"war": 0.7}})["war"].mean
    0.6
    """
    found: dict[str, list[float]] = {}
    for values in metrics.values():
        for name, value in values.items():
            if math.isfinite(value):
                found.setdefault(name, []).append(value)
    return {
        name: Spread(mean=fmean(each), std=stdev(each) if len(each) > 1 else None, num_folds=len(each))
        for name, each in found.items()
    }


def pooled(answers: Sequence[Sequence[Judgement]], task: Task, bootstrap: ClusterBootstrap) -> dict[str, Any] | None:
    """The metrics and intervals of the answers of all folds together; None if two folds have a clip in common.

    A set that every fold is evaluated on, such as one out of domain, has its clips in each fold: pooled, they would
    count as independent.
    """
    judged = [each for fold in answers for each in fold]
    if not judged or len({each.sample_id for each in judged}) < len(judged):
        return None
    intervals = bootstrap.intervals(judged, task)
    return {
        "num_samples": len(judged),
        "metrics": task.metrics(judged),
        "intervals": {name: asdict(interval) for name, interval in intervals.items()},
    }
