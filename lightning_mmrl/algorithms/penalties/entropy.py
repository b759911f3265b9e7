"""Entropy bonus."""

from dataclasses import dataclass, field

from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.protocols.tensors import Schedule
from lightning_mmrl.settings.algorithm import EntropySettings
from lightning_mmrl.settings.rules import check_rules


@dataclass(frozen=True, slots=True)
class EntropyBonus:
    """Coefficient times the entropy of the policy at each token, subtracted from the token's loss.

    loss_t = policy loss_t - coefficient * H_t with H_t = -sum_v p(v) log p(v) over the whole vocabulary
    (arXiv:1602.01783, section 4; PPO, arXiv:1707.06347, eq. 9).

    **Deviations**: the bonus is aggregated in the same way as the policy loss, as in verl. TRL always takes the mean
    over tokens, which is the same with `TokenMean`.

    Attributes:
        settings: Coefficient.
        schedule: Multiplier of the coefficient, a function of the iteration (from 0) and the number of iterations.
            `WarmupCosine` with `final_fraction` 0 warms the coefficient up and lets it decay to zero.

    Raises:
        ConfigError: A setting is out of range.

    >>> EntropyBonus(EntropySettings(coefficient=0.02), schedule=WarmupConstant(warmup_steps=4)).coefficient_at(1, 100)
    0.01
    """

    settings: EntropySettings = field(default_factory=EntropySettings)
    schedule: Schedule = field(default_factory=WarmupConstant)

    def __post_init__(self) -> None:
        check_rules(self.settings, "entropy")

    def coefficient_at(self, step: int | float, num_steps: int) -> float:
        """The coefficient at iteration `step`, counted from 0, of a stage with `num_steps` iterations."""
        return self.settings.coefficient * self.schedule(step, num_steps)
