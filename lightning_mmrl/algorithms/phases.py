"""Limits of a rollout that change within a stage."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightning_mmrl.settings.algorithm import PhaseSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Progressive thinking suppression training (PTST; Vision-R1, arXiv:2503.06749, section 3.4).

    In phase s, a completion has at most L_s tokens and a group has G_s completions. Weights, optimizer and
    learning-rate schedule carry over. Published: 4K tokens x 16 completions for 100 iterations, then 8K x 8.

    The limits are a pure function of the iteration, so a resumed stage is in the right phase.

    **Deviations**: the paper starts a new GRPO run for each phase; here all phases are one stage, so the optimizer
    keeps its moments. To do as the paper does, configure a separate stage for each phase.

    >>> phases = Phases(
    ...     first=PhaseSettings(after=0, group_size=16, max_new_tokens=4096, temperature=1.0),
    ...     later=[PhaseSettings(after=100, group_size=8, max_new_tokens=8192)],
    ... )
    >>> phases.at(99).group_size, phases.at(100).group_size, phases.at(100).temperature
    (16, 8, 1.0)

    Raises:
        ValueError: The phases do not follow one another.
    """

    first: PhaseSettings
    later: Sequence[PhaseSettings] = ()

    def __post_init__(self) -> None:
        starts = [phase.after for phase in self.later]
        if starts != sorted(set(starts)) or any(start < 1 for start in starts):
            raise ValueError(f"phases begin after {starts} iterations; each must begin later than the one before it")

    def at(self, step: int | float) -> PhaseSettings:
        """The limits after so many iterations."""
        limits = self.first
        for phase in self.later:
            if step >= phase.after:
                limits = replace(limits, **{name: value for name, value in vars(phase).items() if value is not None})
        return limits
