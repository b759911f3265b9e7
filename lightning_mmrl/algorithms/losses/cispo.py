"""CISPO's loss: it clips the weights of tokens and drops no token."""

from dataclasses import dataclass, field

import torch

from lightning_mmrl.algorithms.losses.ratios import TokenRatio
from lightning_mmrl.protocols.tensors import Ratio
from lightning_mmrl.types.batches import LossInputs, LossOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class CISPO:
    """REINFORCE with a clipped importance weight: every token keeps its gradient.

    loss = -stop_gradient(clip(ratio, weight_low, weight_high)) * A * logprob (arXiv:2506.13585, eq. 4 and 5, where the
    bounds are 1 - eps_low and 1 + eps_high). `clipped` is True where the weight is not the ratio.

    **Deviations**: the paper gives no number for its upper bound and has no lower one; 5 is TRL's recommendation. The
    log-ratio is clamped to +-20 before the exponential.

    Raises:
        ValueError: If the bounds are not on both sides of 1, or the lower one is negative.

    >>> inputs = LossInputs(
    ...     logprobs=torch.tensor([[-1.0, -1.0]]),
    ...     old_logprobs=torch.tensor([[-1.0, -4.0]]),
    ...     advantages=torch.tensor([[2.0, 2.0]]),
    ...     completion_mask=torch.ones(1, 2, dtype=torch.bool),
    ... )
    >>> CISPO()(inputs).token_losses
    tensor([[ 2., 10.]])
    """

    weight_low: float = 0.0
    weight_high: float = 5.0
    ratio: Ratio = field(default_factory=TokenRatio)

    def __post_init__(self) -> None:
        if not 0 <= self.weight_low <= 1:
            raise ValueError(f"weight_low is {self.weight_low}; it bounds ratios around 1, so it must lie in [0, 1]")
        if not self.weight_high >= 1:
            raise ValueError(f"weight_high is {self.weight_high}; it bounds ratios around 1, so it must be at least 1")

    def __call__(self, inputs: LossInputs) -> LossOutput:
        mask, ratios = inputs.completion_mask, self.ratio(inputs)
        weights = ratios.detach().clamp(self.weight_low, self.weight_high)
        counted = torch.where(mask, inputs.logprobs, torch.zeros_like(inputs.logprobs))
        token_losses = -weights * inputs.advantages * counted
        return LossOutput(
            token_losses=torch.where(mask, token_losses, torch.zeros_like(token_losses)),
            clipped=weights != ratios,
            ratios=ratios,
        )
