"""The loss of PPO's critic."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueClip:
    """Squared error of the values; it stops falling once a value has moved by `clip` from its value at the rollout.

    loss = max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2, as in PPO's first code (openai/baselines,
    ppo2), OpenRLHF and LMM-R1; arXiv:1707.06347 has the plain squared error, which is `clip=None`.

    Raises:
        ValueError: If `clip` is not above 0.

    >>> values, old, returns = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.5]]), torch.tensor([[2.0, 2.0]])
    >>> ValueClip(clip=0.2)(values, old, returns, torch.ones(1, 2, dtype=torch.bool))
    (tensor([[0.5000, 0.8450]]), tensor([[False,  True]]))
    """

    clip: float | None = 0.2

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; it bounds how far values move, so it must be above 0, or None")

    def __call__(
        self,
        values: Float[Tensor, "N C"],
        old_values: Float[Tensor, "N C"],
        returns: Float[Tensor, "N C"],
        mask: Bool[Tensor, "N C"],
    ) -> tuple[Float[Tensor, "N C"], Bool[Tensor, "N C"]]:
        """Returns the token losses, and True where the clip decides, without a gradient; 0 and False outside `mask`."""
        error = torch.where(mask, values - returns, torch.zeros_like(values)).square()
        if self.clip is None:
            return error / 2, torch.zeros_like(mask)
        near = old_values + (values - old_values).clamp(-self.clip, self.clip)
        bounded = torch.where(mask, near - returns, torch.zeros_like(values)).square()
        return torch.maximum(error, bounded) / 2, bounded > error
