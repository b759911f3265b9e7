"""The clipped surrogate of PPO, which GRPO shares."""

from dataclasses import dataclass

import torch

from lightning_mmrl.types.batches import LossInputs, LossOutput

MAX_LOG_RATIO = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOClip:
    """Clipped policy-gradient loss of each token.

    loss = -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) with ratio = exp(logprob - old_logprob)
    (arXiv:1707.06347, eq. 7; per token as in arXiv:2402.03300, eq. 3; separate clips: arXiv:2503.14476, section 3.1).
    `clipped` is True where the clipped term is strictly smaller.

    **Deviations**: the log-ratio is clamped to +-20 before the exponential, so that one runaway token cannot overflow
    the loss; a token out there gets no gradient.

    Raises:
        ValueError: If `clip_low` is outside [0, 1] or `clip_high` is negative.

    >>> inputs = LossInputs(
    ...     logprobs=torch.tensor([[-1.0, -1.0]]),
    ...     old_logprobs=torch.tensor([[-1.0, -2.0]]),
    ...     advantages=torch.tensor([2.0]),
    ...     completion_mask=torch.ones(1, 2, dtype=torch.bool),
    ... )
    >>> PPOClip(clip_low=0.2, clip_high=0.25)(inputs)
    LossOutput(token_losses=tensor([[-2.0000, -2.5000]]), clipped=tensor([[False,  True]]))
    """

    clip_low: float = 0.2
    clip_high: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low <= 1:
            raise ValueError(
                f"clip_low is {self.clip_low}; the ratio is clipped at 1 - clip_low, so it must lie in [0, 1]"
            )
        if not self.clip_high >= 0:
            raise ValueError(
                f"clip_high is {self.clip_high}; the ratio is clipped at 1 + clip_high, so it must be at least 0"
            )

    def __call__(self, inputs: LossInputs) -> LossOutput:
        mask = inputs.completion_mask
        # A masked token gets ratio 1: whatever lies there, it is neither clipped nor part of a gradient.
        difference = inputs.logprobs - inputs.old_logprobs
        log_ratio = torch.where(mask, difference, torch.zeros_like(difference))
        ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        advantages = inputs.advantages.unsqueeze(-1)
        surrogate = ratio * advantages
        clipped_surrogate = ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * advantages
        losses = -torch.minimum(surrogate, clipped_surrogate)
        return LossOutput(
            token_losses=torch.where(mask, losses, torch.zeros_like(losses)),
            clipped=clipped_surrogate < surrogate,
        )
