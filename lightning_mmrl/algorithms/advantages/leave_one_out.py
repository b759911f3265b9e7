"""RLOO's advantage."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.ops.groups import batch_std, constant_groups
from lightning_mmrl.ops.masked import masked_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveOneOut:
    """RLOO advantage: reward minus the mean reward of the prompt's other completions.

    A_i = r_i - (1 / (k - 1)) * sum_{j != i} r_j over the k valid completions (arXiv:2402.14740, eq. 4).
    Groups with fewer than two valid completions get zero.

    With `normalize`, advantages are divided by std(A) + eps. The standard deviation is over all valid completions of
    the step, on all ranks, that have a valid sibling. The paper does not normalize; the code of MM-Eureka v1 and LMM-R1
    does.

    **Deviations**: groups with exactly equal rewards get exact zeros, free of rounding. Invalid completions get zero.
    The mean over the step is not subtracted, since it is zero: the advantages of each group cancel. The released codes
    weight completions by their length in this mean, so that a constant group gets an advantage; here every completion
    has the same weight.

    Raises:
        ValueError: If `eps` is negative.

    >>> LeaveOneOut()(torch.tensor([[1.0, 0.0, 0.0]]), torch.ones(1, 3, dtype=torch.bool))
    tensor([[ 1.0000, -0.5000, -0.5000]])
    """

    normalize: bool = False
    eps: float = 1e-4

    def __post_init__(self) -> None:
        if not self.eps >= 0:
            raise ValueError(f"eps is {self.eps}; it is added to the standard deviation, so it must be at least 0")

    def __call__(self, rewards: Float[Tensor, "B G"], valid: Bool[Tensor, "B G"]) -> Float[Tensor, "B G"]:
        others = masked_sum(rewards, valid, dim=-1).unsqueeze(-1) - rewards
        num_others = valid.sum(-1, keepdim=True) - 1
        counted = valid & ~constant_groups(rewards, valid).unsqueeze(-1)
        advantages = torch.where(counted, rewards - others / num_others, torch.zeros_like(rewards))
        if not self.normalize:
            return advantages
        compared = valid & (valid.sum(-1, keepdim=True) > 1)
        # If all advantages are zero, so is their deviation; with eps 0 the quotient would be NaN.
        return torch.where(counted, advantages / (batch_std(advantages, compared) + self.eps), advantages)
