"""The ends of an interval by scipy's distributions, derived apart from the package."""

import numpy as np
from scipy import stats


def expanded(values, sizes, level=0.95):
    """Expanded percentiles of resampled metrics; `sizes` are the numbers of samples of the resampled units.

    The normal interval m +- z sd of a bootstrap distribution, whose sd lacks a factor sqrt(S / (S - 1)), becomes the t
    interval if z is replaced by t sqrt(S / (S - 1)); the quantiles are those of that z.
    """
    effective = sum(sizes) ** 2 / sum(size * size for size in sizes)
    quantile = stats.t(df=effective - 1).isf((1 - level) / 2) * np.sqrt(effective / (effective - 1))
    share = stats.norm.sf(quantile)
    return np.quantile(values, [share, 1 - share]).tolist()
