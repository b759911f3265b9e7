"""KL penalty on the divergence from the policy that a stage started from."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.ops.kl import MAX_LOG_RATIO, k1, k2, k3
from lightning_mmrl.protocols.tensors import Schedule

ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
PLACES = ("loss", "reward")


@dataclass(frozen=True, slots=True, kw_only=True)
class KLPenalty:
    """Coefficient times an estimate of KL(policy || reference), in the loss or in the reward.

    In the loss each token's estimate is added to its loss (GRPO, arXiv:2402.03300, eq. 3 and 4). In the reward the sum
    over a completion's tokens, at the weights that sampled it, is subtracted before advantages are estimated
    (arXiv:2009.01325; RLOO, arXiv:2402.14740, section 2).

    With `ratio_correction` the estimates in the loss are multiplied by ratio_t = exp(logprob - old_logprob), with its
    gradient, as TRL 1.16 does by default. They then estimate the divergence of the current policy, not of the one that
    sampled, and the mean gradient of k1 and k3 is the gradient of the divergence, (log p - log p_ref) * grad log p
    (arXiv:2510.01555). Without it k3 has this gradient to first order, and k1 not at all. In the reward nothing needs
    correction.

    **Deviations**: the ratio is always of the token, even if the loss takes the ratio of the completion.

    Attributes:
        coefficient: 0 turns the penalty off.
        estimator: k1, k2 or k3, see `ops.kl`.
        where: loss or reward.
        ratio_correction: See above.
        schedule: Multiplier of the coefficient by iteration, from 0, and number of iterations of the stage.

    Raises:
        ValueError: For a coefficient that is negative or infinite, another estimator or another place.

    >>> kl = KLPenalty(coefficient=0.04)
    >>> kl(torch.tensor([[-1.0]]), torch.tensor([[-1.0]]), torch.tensor([[-1.5]]), torch.ones(1, 1, dtype=torch.bool))
    tensor([[0.1065]])
    """

    coefficient: float
    estimator: str = "k3"
    where: str = "loss"
    ratio_correction: bool = False
    schedule: Schedule = field(default_factory=WarmupConstant)

    def __post_init__(self) -> None:
        if not 0 <= self.coefficient < float("inf"):
            raise ValueError(f"coefficient is {self.coefficient}; it must be at least 0 and finite")
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator is {self.estimator!r}; it must be one of {', '.join(ESTIMATORS)}")
        if self.where not in PLACES:
            raise ValueError(f"where is {self.where!r}; it must be one of {', '.join(PLACES)}")

    @property
    def in_reward(self) -> bool:
        """Whether the penalty is a part of the reward, not of the loss."""
        return self.where == "reward"

    def coefficient_at(self, step: int, num_steps: int) -> float:
        """The coefficient of one iteration of a stage, counted from 0."""
        return self.coefficient * self.schedule(step, num_steps)

    def __call__(
        self,
        logprobs: Float[Tensor, "N C"],
        old_logprobs: Float[Tensor, "N C"],
        reference_logprobs: Float[Tensor, "N C"],
        mask: Bool[Tensor, "N C"],
    ) -> Float[Tensor, "N C"]:
        """The estimate at each token, without the coefficient; zero where `mask` is False."""
        estimates = ESTIMATORS[self.estimator](logprobs, reference_logprobs, mask)
        if not self.ratio_correction:
            return estimates
        difference = torch.where(mask, logprobs - old_logprobs, torch.zeros_like(logprobs))
        return estimates * difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
