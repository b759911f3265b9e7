"""The clipped surrogate of PPO, which GRPO shares."""

from dataclasses import dataclass, field

import torch

from lightning_mmrl.algorithms.losses.ratios import TokenRatio
from lightning_mmrl.protocols.tensors import Ratio
from lightning_mmrl.types.batches import LossInputs, LossOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOClip:
    """Clipped policy-gradient loss of each token.

    loss = -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) with ratio = exp(logprob - old_logprob)
    (arXiv:1707.06347, eq. 7; per token as in arXiv:2402.03300, eq. 3; separate clips: arXiv:2503.14476, section 3.1).
    `clipped` is True where a bound decides the loss in place of the ratio, so that the token has no gradient.

    `ratio` may also be the ratio of the completion (`SequenceRatio`, GSPO, arXiv:2507.18071, eq. 5).

    Where A < 0 the loss grows with the ratio without bound. Either of two options bounds it, with the same result:
    `dual_clip` takes max(.., dual_clip * A) there (arXiv:1912.09729, section "Dual-clip PPO"); `ratio_cap` takes
    min(ratio, ratio_cap) for the ratio (the two-sided clip of arXiv:2505.07291, TRL's `delta`, MM-Eureka v2).

    **Deviations**: the log-ratio is clamped to +-20 before the exponential, so that one runaway token cannot overflow
    the loss; a token beyond the clamp gets no gradient.

    Raises:
        ValueError: If `clip_low` is outside [0, 1], `clip_high` is negative, or a given `dual_clip` or
            `ratio_cap` is at most 1 or below 1 + clip_high.

    >>> inputs = LossInputs(
    ...     logprobs=torch.tensor([[-1.0, -1.0]]),
    ...     old_logprobs=torch.tensor([[-1.0, -2.0]]),
    ...     advantages=torch.tensor([[2.0, 2.0]]),
    ...     completion_mask=torch.ones(1, 2, dtype=torch.bool),
    ... )
    >>> output = PPOClip(clip_low=0.2, clip_high=0.25)(inputs)
    >>> output.token_losses, output.clipped
    (tensor([[-2.0000, -2.5000]]), tensor([[False,  True]]))
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    ratio_cap: float | None = None
    ratio: Ratio = field(default_factory=TokenRatio)

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low <= 1:
            raise ValueError(
                f"clip_low is {self.clip_low}; the ratio is clipped at 1 - clip_low, so it must lie in [0, 1]"
            )
        if not self.clip_high >= 0:
            raise ValueError(
                f"clip_high is {self.clip_high}; the ratio is clipped at 1 + clip_high, so it must be at least 0"
            )
        for name, bound in (("dual_clip", self.dual_clip), ("ratio_cap", self.ratio_cap)):
            if bound is not None and not (bound > 1 and bound >= 1 + self.clip_high):
                raise ValueError(
                    f"{name} is {bound}; it bounds ratios that clip_high does not, so it must be above 1 and at least "
                    f"1 + clip_high, which is {1 + self.clip_high}"
                )

    def __call__(self, inputs: LossInputs) -> LossOutput:
        mask, ratios = inputs.completion_mask, self.ratio(inputs)
        advantages = inputs.advantages
        surrogate = ratios * advantages
        clipped_surrogate = ratios.clamp(1 - self.clip_low, 1 + self.clip_high) * advantages
        clipped = clipped_surrogate < surrogate
        if self.ratio_cap is not None:
            clipped = clipped | ((ratios > self.ratio_cap) & (advantages < 0))
            surrogate = ratios.clamp(max=self.ratio_cap) * advantages
        objective = torch.minimum(surrogate, clipped_surrogate)
        if self.dual_clip is not None:
            floor = self.dual_clip * advantages.clamp(max=0)  # zero for A >= 0, where no objective is below it
            clipped = clipped | (objective < floor)
            objective = torch.maximum(objective, floor)
        return LossOutput(
            token_losses=torch.where(mask, -objective, torch.zeros_like(objective)), clipped=clipped, ratios=ratios
        )
