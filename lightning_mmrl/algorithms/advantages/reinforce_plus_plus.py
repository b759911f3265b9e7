"""REINFORCE++'s advantage, in its variant with a baseline."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.ops.groups import batch_std, constant_groups, group_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforcePlusPlusBaseline:
    """REINFORCE++ with baseline: reward minus the group's mean, divided by the deviation of the step's differences.

    D_i = r_i - mean(r) over the valid completions of the prompt, A_i = (D_i - mean(D)) / (std(D) + eps) over all valid
    completions of the step on all ranks (arXiv:2501.03262v9, REINFORCE++ w/ Baseline).

    **Deviations**: std is the unbiased one and eps is 1e-4, as in `GroupNormalized`; the paper names neither. mean(D)
    is not subtracted, since it is zero: the differences of each group cancel. In OpenRLHF's mean(D), completions weigh
    by their length; here all weigh the same, as in the paper. Groups with fewer than two valid completions, or whose
    rewards are exactly equal, get exact zeros. Invalid completions get zero.

    Raises:
        ValueError: If `eps` is negative.

    >>> valid = torch.ones(2, 2, dtype=torch.bool)
    >>> ReinforcePlusPlusBaseline()(torch.tensor([[1.0, 0.0], [9.0, 8.0]]), valid)
    tensor([[ 0.8659, -0.8659],
            [ 0.8659, -0.8659]])
    """

    eps: float = 1e-4

    def __post_init__(self) -> None:
        if not self.eps >= 0:
            raise ValueError(f"eps is {self.eps}; it is added to the standard deviation, so it must be at least 0")

    def __call__(self, rewards: Float[Tensor, "B G"], valid: Bool[Tensor, "B G"]) -> Float[Tensor, "B G"]:
        differences = rewards - group_mean(rewards, valid).unsqueeze(-1)
        counted = valid & ~constant_groups(rewards, valid).unsqueeze(-1)
        differences = torch.where(counted, differences, torch.zeros_like(differences))
        # If all differences are zero, so is their deviation; with eps 0 the quotient would be NaN.
        return torch.where(counted, differences / (batch_std(differences, valid) + self.eps), differences)
