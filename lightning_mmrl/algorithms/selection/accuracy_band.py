"""The online filter of MM-Eureka: keeps prompts that the policy solves sometimes."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyBand:
    """Keeps a group if low <= accuracy <= high, where accuracy is the share of its valid completions that are right.

    MM-Eureka v2 (arXiv:2503.07365, algorithm 1; bounds of the released scripts, `experience_maker.filter`). Both bounds
    are inclusive. Groups with fewer than two valid completions are rejected: there is nothing to compare.

    **Deviations**: the paper's completions are all valid; here a completion whose verifier failed counts neither as
    right nor as wrong.

    Raises:
        ValueError: If the bounds are not 0 <= low <= high <= 1.

    >>> import torch
    >>> right = torch.tensor([[True, False], [True, True], [False, False]])
    >>> AccuracyBand()(right.float(), right, torch.ones(3, 2, dtype=torch.bool))
    tensor([ True, False, False])
    """

    low: float = 0.1
    high: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(
                f"low is {self.low} and high is {self.high}; they are shares of right completions, so "
                "0 <= low <= high <= 1"
            )

    def __call__(
        self, rewards: Float[Tensor, "B G"], passed: Bool[Tensor, "B G"], valid: Bool[Tensor, "B G"]
    ) -> Bool[Tensor, " B"]:
        num_valid = valid.sum(-1)
        # Without a valid completion the accuracy is NaN, which lies in no band. In float64 k / n equals a bound that is
        # written as the same number: 1 of 10 is not below 0.1.
        accuracy = (passed & valid).sum(-1).double() / num_valid.double()
        return (self.low <= accuracy) & (accuracy <= self.high) & (num_valid >= 2)
