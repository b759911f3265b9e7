"""GRPO's advantage."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.ops.groups import batch_std, constant_groups, group_mean, group_std


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupNormalized:
    """GRPO advantage: reward minus the group's mean, divided by a standard deviation.

    A_i = (r_i - mean(r)) / (std(r) + eps) over the valid completions of the prompt (arXiv:2402.03300, section 4.1.2).
    `std` chooses the deviation: `group` takes the prompt's own; `batch` takes it over the rewards of all valid
    completions of the step on all ranks (arXiv:2508.08221); None does not divide (Dr. GRPO, arXiv:2503.20783).

    **Deviations**: std is the unbiased one and eps is added to it, as in TRL 1.16; the papers name neither. Groups with
    fewer than two valid completions, or whose rewards are exactly equal, get exact zeros; otherwise a rounding error of
    one ulp would be divided by eps. Invalid completions get zero.

    Raises:
        ValueError: If `std` is none of these, or `eps` is negative.

    >>> GroupNormalized()(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), torch.ones(1, 4, dtype=torch.bool))
    tensor([[ 0.8659, -0.8659, -0.8659,  0.8659]])
    """

    eps: float = 1e-4
    std: str | None = "group"

    def __post_init__(self) -> None:
        if self.std not in ("group", "batch", None):
            raise ValueError(f"std is {self.std!r}; it must be group, batch or null, which divides by nothing")
        if not self.eps >= 0:
            raise ValueError(f"eps is {self.eps}; it is added to the standard deviation, so it must be at least 0")

    def __call__(self, rewards: Float[Tensor, "B G"], valid: Bool[Tensor, "B G"]) -> Float[Tensor, "B G"]:
        advantages = rewards - group_mean(rewards, valid).unsqueeze(-1)
        if self.std == "group":
            advantages = advantages / (group_std(rewards, valid).unsqueeze(-1) + self.eps)
        elif self.std == "batch":
            advantages = advantages / (batch_std(rewards, valid) + self.eps)
        counted = valid & ~constant_groups(rewards, valid).unsqueeze(-1)
        return torch.where(counted, advantages, torch.zeros_like(advantages))
