"""Combines runs that differ in their seed alone, by Student's t over seeds.

An interval that resamples speakers says how a trained model does on other speakers. It does not say how another seed
would train. The two are different questions, and the second needs several runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import fmean, stdev

from lightning_mmrl.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedT:
    """The mean over seeds with its t interval.

    Attributes:
        mean: Mean over seeds.
        low: Lower end.
        high: Upper end.
        level: The share of such intervals that hold the mean over all seeds.
        sd: Standard deviation over seeds, with S - 1 in the denominator.
        p_value: Of the two-sided test that the mean over all seeds is 0.
        values: The difference of each seed.
    """

    mean: float
    low: float
    high: float
    level: float
    sd: float
    p_value: float
    values: tuple[float, ...]


def paired_t(differences: Sequence[float], level: float = 0.95) -> PairedT:
    """Student's paired t test over S seeds: t = mean / (sd / sqrt(S)) with S - 1 degrees of freedom.

    It takes seeds as independent draws, and the differences between them as normal. If all differences are equal, the
    interval has no width; p is then 0, or 1 if they are 0 (scipy's `ttest_rel` gives no number there).

    Args:
        differences: For each seed a metric of one run minus that of the other, or one metric by itself.
        level: Coverage of the interval.

    Raises:
        DataError: There are fewer than two seeds, or a difference is not finite.

    >>> found = paired_t([0.02, 0.05, 0.08])
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3), round(found.p_value, 3)
    (0.05, -0.025, 0.125, 0.102)
    """
    from scipy.special import stdtr, stdtrit  # loads slowly, and commands that combine no seeds do without

    values = tuple(float(each) for each in differences)
    if len(values) < 2:
        raise DataError(f"{len(values)} seed says nothing about others; give the results of at least two seeds")
    if not all(map(isfinite, values)):
        raise DataError(f"the differences of the seeds are {list(values)}; all must be finite")
    mean, sd = fmean(values), stdev(values)
    error, freedom = sd / sqrt(len(values)), len(values) - 1
    half = float(stdtrit(freedom, (1 + level) / 2)) * error
    certain = 0.0 if mean else 1.0
    p_value = 2 * float(stdtr(freedom, -abs(mean) / error)) if error > 0 else certain
    return PairedT(mean=mean, low=mean - half, high=mean + half, level=level, sd=sd, p_value=p_value, values=values)
