"""The choices that make up a policy-gradient algorithm."""

from dataclasses import dataclass, field

from lightning_mmrl.algorithms.penalties.entropy import EntropyBonus
from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.protocols.tensors import (
    AdvantageEstimator,
    Aggregation,
    CompletionSelector,
    Correction,
    GroupSelector,
    PolicyLoss,
)
from lightning_mmrl.settings.algorithm import AlgorithmSettings
from lightning_mmrl.stages.optimize import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """The choices in which RL stages differ; one `PolicyGradientModule` runs all of them.

    Attributes:
        advantage: Turns the rewards of a group into advantages; None if a critic estimates them.
        loss: The unreduced loss.
        aggregation: Reduces token losses, and counts their denominator.
        correction: Weights of token losses for the mismatch of engine and policy; None for none.
        select: Which groups are trained on; None for all.
        resample: How often each completion of these groups is trained on; None for once.
        kl: Penalty on the divergence from the policy that the stage starts from.
        entropy: Entropy bonus.
        settings: Everything else that a user writes: group sizes, phases, refill, critic and updates.
    """

    advantage: AdvantageEstimator | None
    loss: PolicyLoss
    aggregation: Aggregation
    correction: Correction | None = None
    select: GroupSelector | None = None
    resample: CompletionSelector | None = None
    kl: KLPenalty = field(default_factory=KLPenalty)
    entropy: EntropyBonus = field(default_factory=EntropyBonus)
    settings: AlgorithmSettings = field(default_factory=AlgorithmSettings)

    @property
    def regularized(self) -> bool:
        """True if weights move without an advantage: by a KL or entropy term of the loss, or in a critic."""
        penalized = self.kl.settings.coefficient != 0 and not self.kl.in_reward
        return penalized or self.entropy.settings.coefficient != 0 or self.settings.critic is not None

    def coefficients(self, step: int | float, num_steps: int) -> dict[str, float]:
        """The coefficients of the penalties that the algorithm has after `step` iterations, as metrics."""
        terms = {"kl": self.kl, "entropy": self.entropy}
        return {
            f"train/{name}_coefficient": term.coefficient_at(step, num_steps)
            for name, term in terms.items()
            if term.settings.coefficient
        }

    def objective(self, step: int | float, num_steps: int, ranks: Ranks = ALONE) -> Objective:
        """The loss of the iteration after `step` iterations of a stage of `num_steps`."""
        kl = self.kl.coefficient_at(step, num_steps)
        return Objective(
            loss=self.loss,
            aggregation=self.aggregation,
            correction=self.correction,
            ranks=ranks,
            kl=self.kl,
            kl_coefficient=0.0 if self.kl.in_reward else kl,
            entropy_coefficient=self.entropy.coefficient_at(step, num_steps),
        )

    def __post_init__(self) -> None:
        settings = self.settings
        if (self.advantage is None) == (settings.critic is None):
            raise ValueError("advantages come from an estimator or from a critic; give one of the two")
        least = 2 if settings.critic is None else 1
        for size in (settings.group_size, *(phase.group_size for phase in settings.phases.values())):
            if size is not None and size < least:
                raise ValueError(
                    f"group_size is {size}; it must be at least {least}, to compare completions or have any"
                )
        if settings.max_samplings < 1 or (settings.max_samplings > 1 and self.select is None):
            rule = "it must be at least 1, and 1 without a selection, which is what calls for more"
            raise ValueError(f"max_samplings is {settings.max_samplings}; {rule}")
        if settings.router is not None and (settings.critic is not None or self.resample is not None):
            raise ValueError("a router does without a critic and without resample; drop it or the other")
        if self.resample is not None and settings.critic is not None:
            raise ValueError(
                "resample draws completions by their advantages, and a critic gives them to tokens; drop one"
            )
