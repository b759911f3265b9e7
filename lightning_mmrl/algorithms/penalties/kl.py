"""KL penalty on the divergence from the policy that a stage started from."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.ops.kl import MAX_LOG_RATIO, k1, k2, k3
from lightning_mmrl.protocols.tensors import Schedule
from lightning_mmrl.settings.algorithm import KLSettings
from lightning_mmrl.settings.rules import check_rules

ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


@dataclass(frozen=True, slots=True)
class KLPenalty:
    """Coefficient times an estimate of KL(policy || reference), in the loss or in the reward.

    In the loss, each token's estimate is added to its loss (GRPO, arXiv:2402.03300, eq. 3 and 4). From the reward, the
    sum of the estimates over a completion's tokens is subtracted before advantages are estimated; it is computed with
    the weights that sampled the completion (arXiv:2009.01325; RLOO, arXiv:2402.14740, section 2).

    With `ratio_correction` the estimates in the loss are multiplied by ratio_t = exp(logprob - old_logprob), with its
    gradient, as TRL 1.16 does by default. They then estimate the divergence of the current policy, not of the one that
    sampled, and the mean gradient of k1 and k3 is the gradient of the divergence, (log p - log p_ref) * grad log p
    (arXiv:2510.01555). Without the correction, k3 has this gradient to first order, and k1 not at all. In the reward
    nothing needs correction.

    **Deviations**: this ratio is always the token's, even if the loss takes the ratio of the completion.

    Attributes:
        settings: Coefficient, estimator and place.
        schedule: Multiplier of the coefficient, a function of the iteration (from 0) and the number of iterations.

    Raises:
        ConfigError: A setting is out of range.

    >>> kl = KLPenalty(KLSettings(coefficient=0.04))
    >>> kl(torch.tensor([[-1.0]]), torch.tensor([[-1.0]]), torch.tensor([[-1.5]]), torch.ones(1, 1, dtype=torch.bool))
    tensor([[0.1065]])
    """

    settings: KLSettings = field(default_factory=KLSettings)
    schedule: Schedule = field(default_factory=WarmupConstant)

    def __post_init__(self) -> None:
        check_rules(self.settings, "kl")

    @property
    def in_reward(self) -> bool:
        """Whether the penalty is a part of the reward, not of the loss."""
        return self.settings.where == "reward"

    def coefficient_at(self, step: int | float, num_steps: int) -> float:
        """The coefficient at iteration `step`, counted from 0, of a stage with `num_steps` iterations."""
        return self.settings.coefficient * self.schedule(step, num_steps)

    def __call__(
        self,
        logprobs: Float[Tensor, "N C"],
        old_logprobs: Float[Tensor, "N C"],
        reference_logprobs: Float[Tensor, "N C"],
        mask: Bool[Tensor, "N C"],
    ) -> Float[Tensor, "N C"]:
        """The estimate at each token, without the coefficient; zero where `mask` is False."""
        estimates = ESTIMATORS[self.settings.estimator](logprobs, reference_logprobs, mask)
        if not self.settings.ratio_correction:
            return estimates
        difference = torch.where(mask, logprobs - old_logprobs, torch.zeros_like(logprobs))
        return estimates * difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
