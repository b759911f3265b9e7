"""RLOO's advantage."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.ops.groups import constant_groups
from lightning_mmrl.ops.masked import masked_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveOneOut:
    """RLOO advantage: reward minus the mean reward of the prompt's other completions.

    A_i = r_i - (1 / (k - 1)) * sum_{j != i} r_j over the k valid completions (arXiv:2402.14740, eq. 4).
    Groups with fewer than two valid completions get zero.

    **Deviations**: groups with exactly equal rewards get exact zeros, free of rounding. Invalid completions get zero.

    >>> LeaveOneOut()(torch.tensor([[1.0, 0.0, 0.0]]), torch.ones(1, 3, dtype=torch.bool))
    tensor([[ 1.0000, -0.5000, -0.5000]])
    """

    def __call__(self, rewards: Float[Tensor, "B G"], valid: Bool[Tensor, "B G"]) -> Float[Tensor, "B G"]:
        others = masked_sum(rewards, valid, dim=-1).unsqueeze(-1) - rewards
        num_others = (valid.sum(-1, keepdim=True) - 1).clamp(min=1)
        counted = valid & ~constant_groups(rewards, valid).unsqueeze(-1)
        return torch.where(counted, rewards - others / num_others, torch.zeros_like(rewards))
