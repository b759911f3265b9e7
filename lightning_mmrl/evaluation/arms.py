"""Compares arms of an experiment that were trained with the same seeds, and says what so many seeds can find.

The unit is the seed. Two arms with one seed share its data order and base, so their difference is paired. If the arms
were also trained on folds, the value of a seed is its mean over the folds: the training samples of two folds overlap,
and all seeds meet the same folds, so results of folds are not independent draws (Bengio and Grandvalet, JMLR 5, 2004),
and counting each as one would make intervals too narrow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations
from math import isfinite, sqrt
from statistics import fmean
from typing import Any

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.seeds import PairedT, paired_t

LEVEL = 0.95
POWER = 0.8
_NO_SPREAD = 1e-9
"""Differences whose deviation is a smaller share of the values are equal but for rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """The difference between two arms over the seeds that both have.

    Attributes:
        arm: The arm whose values count positively.
        over: The arm that is taken off.
        seeds: The seeds that both have.
        found: Student's t of the differences; None with fewer than two seeds, or without spread.
        mean: Mean difference; None without seeds.
        together: Ends of the simultaneous interval, see `compare_arms`; None where `found` is.
        corrected: The p value after Holm's correction; None where `found` is.
        smallest: The smallest true difference that so many seeds with this spread find with 80 % power at the first
            step of the correction; None where `found` is.
    """

    arm: str
    over: str
    seeds: tuple[int, ...]
    found: PairedT | None
    mean: float | None
    together: tuple[float, float] | None
    corrected: float | None
    smallest: float | None

    @property
    def why_not(self) -> str | None:
        """The reason for which there is no interval; None if there is one."""
        if self.found is not None:
            return None
        if len(self.seeds) > 1:
            return f"the difference is the same in all {len(self.seeds)} seeds, so Student's t has no spread to go by"
        return "one seed in common, which has no interval" if self.seeds else "no seed in common"

    def plain(self) -> dict[str, Any]:
        """Plain values for a file."""
        return asdict(self) | {"why_not": self.why_not}


def compare_arms(
    values: Mapping[str, Mapping[int, float]], baseline: str, *, all_pairs: bool = False, level: float = LEVEL
) -> tuple[Contrast, ...]:
    """Each arm minus the baseline, or each pair of arms, by the paired t test over the seeds that both have.

    p values of the m planned comparisons are corrected together by Holm's step-down procedure, which bounds the chance
    of any false finding by 1 - `level` whatever the dependence between arms (Scandinavian Journal of Statistics 6,
    1979). The simultaneous intervals are Bonferroni's, t intervals of level 1 - (1 - `level`) / m. All of them hold the
    truth together in at least `level` of cases. Holm's procedure finds more than they do: a corrected p can lie below
    1 - `level` where the simultaneous interval has 0.

    A comparison without an interval counts among the m, as one with p = 1. If all differences are equal but for
    rounding there is none: the test would take two equal gains of small test sets for certain.

    Args:
        values: For each arm the metric of each seed.
        baseline: The arm that others are compared with.
        all_pairs: Compare each arm with each one before it.
        level: Coverage of the intervals.

    Raises:
        DataError: The baseline is none of the arms, or a value is not finite.

    >>> found = compare_arms({"sft": {0: 0.5, 1: 0.6, 2: 0.4}, "rl": {0: 0.6, 1: 0.8, 2: 0.7}}, "sft")
    >>> round(found[0].mean, 3), found[0].seeds, round(found[0].corrected, 3)
    (0.2, (0, 1, 2), 0.074)
    """
    if baseline not in values:
        raise DataError(f"the baseline {baseline!r} is none of the arms {', '.join(values)}; name one of them")
    for arm, known in values.items():
        if bad := [seed for seed, value in known.items() if not isfinite(value)]:
            raise DataError(f"arm {arm}, seed {bad[0]} has the value {known[bad[0]]}; leave out what is not finite")
    pairs = [(arm, baseline) for arm in values if arm != baseline]
    if all_pairs:
        order = [baseline, *(arm for arm in values if arm != baseline)]
        pairs = [(late, early) for early, late in combinations(order, 2)]
    each = [_paired(values[arm], values[over], level) for arm, over in pairs]
    corrected = holm([1.0 if found is None else found.p_value for _, _, found in each])
    return tuple(
        Contrast(
            arm=arm,
            over=over,
            seeds=seeds,
            found=found,
            mean=mean,
            together=_together(found, len(pairs)),
            corrected=None if found is None else p_value,
            smallest=None if found is None else found.sd * smallest_difference(len(seeds), len(pairs), level=level),
        )
        for (arm, over), (seeds, mean, found), p_value in zip(pairs, each, corrected, strict=True)
    )


def over_seeds(values: Sequence[float], size: float, level: float = LEVEL) -> PairedT | None:
    """The mean over seeds with its t interval; None with fewer than two seeds, or if all are equal but for rounding.

    Args:
        values: A value of each seed, or a difference.
        size: The largest of what was measured, which says how large rounding may be.
        level: Coverage of the interval.
    """
    if len(values) < 2:
        return None
    found = paired_t(values, level)
    return found if found.sd > _NO_SPREAD * size else None


def _paired(
    own: Mapping[int, float], other: Mapping[int, float], level: float
) -> tuple[tuple[int, ...], float | None, PairedT | None]:
    seeds = tuple(sorted(own.keys() & other.keys()))
    differences = [own[seed] - other[seed] for seed in seeds]
    size = max((abs(each[seed]) for each in (own, other) for seed in seeds), default=0.0)
    return seeds, fmean(differences) if seeds else None, over_seeds(differences, size, level)


def _together(found: PairedT | None, num_comparisons: int) -> tuple[float, float] | None:
    if found is None:
        return None
    wide = paired_t(found.values, 1 - (1 - found.level) / num_comparisons)
    return wide.low, wide.high


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p values: of the k-th smallest, the largest of (m - j + 1) p_(j) over j <= k, at most 1.

    Sture Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6, 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def power(difference: float, num_seeds: int, num_comparisons: int = 1, *, level: float = LEVEL) -> float:
    """The chance that the paired t test over n seeds finds a true difference with its right sign.

    The difference is in standard deviations of paired differences. The statistic has the noncentral t distribution
    with n - 1 degrees of freedom and noncentrality difference sqrt(n). The test is two-sided at (1 - `level`) / m, the
    first step of Holm's correction. So the chance after the correction is at least this: later steps ask less.

    >>> round(power(1.0, 10), 3)
    0.803
    """
    from scipy.special import nctdtr, stdtrit  # loads slowly

    freedom, shift = num_seeds - 1, difference * sqrt(num_seeds)
    edge = float(stdtrit(freedom, 1 - (1 - level) / (2 * num_comparisons)))
    return 1 - float(nctdtr(freedom, shift, edge))


@cache
def smallest_difference(num_seeds: int, num_comparisons: int = 1, *, level: float = LEVEL) -> float:
    """The smallest true difference that is found with 80 % power, in standard deviations of paired differences.

    Raises:
        DataError: There are fewer than two seeds.

    >>> round(smallest_difference(8), 2), round(smallest_difference(8, 4), 2)
    (1.16, 1.53)
    """
    if num_seeds < 2:
        raise DataError(f"{num_seeds} seed says nothing about others; give at least two seeds")
    low, high = 0.0, 1.0
    while power(high, num_seeds, num_comparisons, level=level) < POWER:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, num_seeds, num_comparisons, level=level) >= POWER else (middle, high)
    return high


def power_line(num_seeds: int, num_comparisons: int, sd: float | None = None) -> str:
    """One sentence on the differences that a comparison will find.

    Args:
        num_seeds: Seeds of each arm.
        num_comparisons: Pairs of arms that are corrected for together.
        sd: Standard deviation of paired differences, as a share; None if unknown.

    >>> power_line(8, 4, 0.03)[:92]
    '8 seeds, 4 comparisons: true differences above 1.5 standard deviations of paired differences'
    """
    seeds = f"{num_seeds} seed{'' if num_seeds == 1 else 's'}"
    comparisons = f"{num_comparisons} comparison{'' if num_comparisons == 1 else 's'}"
    if num_comparisons < 1:
        return f"{seeds}, one arm: there is nothing to compare with."
    if num_seeds < 2:
        return f"{seeds}, {comparisons}: one seed says nothing about others, so no difference can be tested."
    smallest = smallest_difference(num_seeds, num_comparisons)
    points = "" if sd is None else f"; {100 * smallest * sd:.1f} points if that deviation is {100 * sd:.1f} points"
    return (
        f"{seeds}, {comparisons}: true differences above {smallest:.1f} standard deviations of paired differences are "
        f"found with at least {100 * POWER:.0f} % power each, at the corrected level{points}."
    )


def mean_over_folds(values: Mapping[str | None, float], folds: Sequence[str | None]) -> float | None:
    """The value of a seed: its mean over the folds; None if a fold is missing, which would tilt the mean."""
    return fmean(values[fold] for fold in folds) if all(fold in values for fold in folds) else None
