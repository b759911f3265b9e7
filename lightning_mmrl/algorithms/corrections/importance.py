"""Importance weights for the mismatch of sampling engine and policy."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.ops.kl import MAX_LOG_RATIO, k1
from lightning_mmrl.types.batches import CorrectionOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceCorrection:
    """Multiplies token losses by bounded weights w = pi_old / mu: the policy at the rollout, divided by the engine.

    w_t = exp(old_logprob_t - sampler_logprob_t) for each token. With `level="sequence"`, every token of a completion
    has the product of its tokens' weights (importance sampling of whole completions).

    `mode="truncate"` takes clip(w, floor, cap): truncated importance sampling (F. Yao et al., 2025, "Your efficient RL
    framework secretly brings you off-policy RL training"; verl's `rollout_is`). `mode="mask"` takes w inside
    [floor, cap] and 0 outside: the tokens or completions outside leave the loss but stay in its denominator (IcePop,
    arXiv:2510.18855). Level and mode are TRL 1.16's `vllm_importance_sampling_mode`; `floor` and `cap` are its
    `.._clip_min` and `.._clip_max`. Weights carry no gradient. As in TRL, they multiply the policy loss, but no KL or
    entropy term.

    Weights of whole completions with an infinite cap make the gradient unbiased, provided that the engine can sample
    everything that the policy can; the gradient's variance grows with the mismatch and the length. Weights of tokens
    and bounded weights trade this variance for a bias.

    **Deviations**: the log of w is clamped to +-20 before the exponential. TRL takes w = 1 where the engine gave no
    log-probability; here it gives one for every sampled token. The weights do not change the loss of PPO's critic.

    Attributes:
        level: token or sequence.
        mode: truncate or mask.
        cap: Largest weight; infinity means no bound. TRL's default is 3 with whole sequences masked, verl's is 2.
        floor: Smallest weight.

    Raises:
        ValueError: For another level or mode, a cap that is not above 1, or a floor that is not in [0, 1).

    >>> old, mask = torch.zeros(1, 3), torch.tensor([[True, True, False]])
    >>> sampler = torch.tensor([[0.5, 4.0, 1.0]]).log().neg()
    >>> ImportanceCorrection()(old, sampler, mask).weights
    tensor([[0.5000, 2.0000, 1.0000]])
    >>> ImportanceCorrection(level="sequence", mode="mask")(old, sampler, mask).weights
    tensor([[2., 2., 1.]])
    """

    level: str = "token"
    mode: str = "truncate"
    cap: float = 2.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        for name, value, known in (("level", self.level, LEVELS), ("mode", self.mode, MODES)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
        if not self.cap > 1:
            raise ValueError(f"cap is {self.cap}; weights are 1 where engine and policy agree, so it must be above 1")
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor is {self.floor}; it must be at least 0 and below 1, the weight without a mismatch")

    def __call__(
        self,
        old_logprobs: Float[Tensor, "N C"],
        sampler_logprobs: Float[Tensor, "N C"],
        completion_mask: Bool[Tensor, "N C"],
    ) -> CorrectionOutput:
        """Returns the weights of the tokens; each row of `completion_mask` covers a whole completion or nothing."""
        sampler = sampler_logprobs.detach().to(old_logprobs.dtype)
        logs = k1(old_logprobs.detach(), sampler, completion_mask)
        logs, counted = LEVELS[self.level](logs, completion_mask)
        ones = torch.ones_like(logs)
        ratios = torch.where(completion_mask, logs.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp(), ones)
        clipped = (ratios > self.cap) | (ratios < self.floor)
        weights = MODES[self.mode](ratios, self.floor, self.cap)
        return CorrectionOutput(weights=weights, ratios=ratios, clipped=clipped, counted=counted)


def _of_completions(
    logs: Float[Tensor, "N C"], mask: Bool[Tensor, "N C"]
) -> tuple[Float[Tensor, "N C"], Bool[Tensor, "N C"]]:
    """Returns each completion's sum at all of its tokens, and a mask of its first token, at which it counts once."""
    return logs.sum(-1, keepdim=True).expand_as(logs), mask & (mask.cumsum(-1) == 1)


LEVELS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "token": lambda logs, mask: (logs, mask),
    "sequence": _of_completions,
}
MODES: dict[str, Callable[..., Tensor]] = {
    "truncate": lambda ratios, floor, cap: ratios.clamp(floor, cap),
    "mask": lambda ratios, floor, cap: torch.where(
        (ratios >= floor) & (ratios <= cap), ratios, torch.zeros_like(ratios)
    ),
}
