"""Losses of a user's own."""

from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_mmrl.algorithms.losses.ratios import TokenRatio
from lightning_mmrl.types.batches import LossInputs, LossOutput
from own_code.calls import CALLS


@dataclass(frozen=True, kw_only=True)
class Unclipped:
    """The surrogate without a clip."""

    ratio: Any = field(default_factory=TokenRatio)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        CALLS["loss"] += 1
        ratios = self.ratio(inputs)
        losses = torch.where(inputs.completion_mask, -ratios * inputs.advantages, torch.zeros_like(ratios))
        return LossOutput(token_losses=losses, clipped=torch.zeros_like(inputs.completion_mask), ratios=ratios)
