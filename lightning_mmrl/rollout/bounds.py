"""How far the log-probabilities of two computations of one policy may lie apart, by the type that they compute in."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Bounds of the absolute differences of tokens' log-probabilities, in nats.

    A comparison is **gross** if the median or the quantile of its differences is more than `gross` times its bound, and
    **doubtful** if one of them is above its bound at all. With a `gross` of 1 there is no doubt in between.

    Attributes:
        median: Bound of the median.
        high: Bound of the quantile.
        quantile: Which quantile, from the next lower token: 0.99 of n < 101 tokens leaves out the largest difference.
        gross: Factor of both bounds.
    """

    median: float
    high: float
    quantile: float = 1.0
    gross: float = 1.0

    def with_high(self, high: float) -> "Bounds":
        """Bounds with another quantile's bound; that of the median changes in proportion."""
        return replace(self, high=high, median=self.median * high / self.high)

    def quantiles(self, gaps: Float[Tensor, " n"]) -> tuple[float, float]:
        """The median and the quantile of differences; one that is no number counts as infinite.

        >>> Bounds(median=0.05, high=0.5, quantile=0.99).quantiles(torch.tensor([0.125, 0.5, 7.0, 0.25]))
        (0.25, 0.5)
        """
        ordered = gaps.nan_to_num(torch.inf).sort().values
        median, high = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, self.quantile))
        return float(median), float(high)


EXACT = Bounds(median=1e-4, high=1e-4)
"""Of float32 and float64: another order of sums moves no token by more than 1e-5 nats, so that each token counts, and
one that is outside is an error."""

BFLOAT16 = Bounds(median=0.05, high=0.5, quantile=0.99, gross=3.0)
"""Of bfloat16, which keeps 8 bits: a logit of 16 to 32 is rounded by up to 0.06.

Both bounds are twice the values of vLLM and the policy for SmolLM2-135M-Instruct on a CPU, over 965 tokens at
temperature 1: median 0.024, 99th percentile 0.23, maximum 0.36, with bfloat16 weights as with float32 weights under
autocast. A token that is nearly certain has hardly any difference, so a larger model, which is more certain, lies
lower. The maximum bounds nothing, since it grows with the number of tokens.

Faults on the same tokens have a median and a 99th percentile of 0.08 and 1.8 (the completions' positions shifted by 3),
0.09 and 3.3 (by -3), 0.26 and 2.5 (one projection of one of 30 layers at zero). A shift by 1 has 0.045 and 0.56: it is
at the edge, and is found after several comparisons or not at all. Kernels of a GPU round in other places, which was not
measured.
"""

FLOAT16 = Bounds(median=0.0125, high=0.125, quantile=0.99, gross=3.0)
"""Of float16, which keeps 11 bits: a quarter of bfloat16's bounds, where rounding alone would give an eighth."""

USUAL = {
    torch.float64: EXACT,
    torch.float32: EXACT,
    torch.bfloat16: BFLOAT16,
    torch.float16: FLOAT16,
}
"""Bounds by the type of the passes."""
