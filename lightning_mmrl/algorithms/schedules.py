"""Schedules: multipliers of a learning rate or of a coefficient."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupCosine:
    """Linear warm-up, then a cosine from 1 down to `final_fraction` at the last step.

    >>> schedule = WarmupCosine(warmup_steps=2, final_fraction=0.1)
    >>> [round(schedule(step, 11), 3) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.55, 0.1]

    Raises:
        ValueError: If `warmup_steps` is negative or `final_fraction` is outside [0, 1].
    """

    warmup_steps: int = 0
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(
                f"final_fraction is {self.final_fraction}; it is a share of the base rate, between 0 and 1"
            )

    def __call__(self, step: int | float, num_steps: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, num_steps - 1 - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.final_fraction + (1 - self.final_fraction) * cosine


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupConstant:
    """Linear warm-up, then the base rate.

    >>> [WarmupConstant(warmup_steps=4)(step, 100) for step in (0, 1, 3, 50)]
    [0.25, 0.5, 1.0, 1.0]

    Raises:
        ValueError: If `warmup_steps` is negative.
    """

    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)

    def __call__(self, step: int | float, num_steps: int) -> float:
        return min(1.0, (step + 1) / max(1, self.warmup_steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayedDecay:
    """Zero for `delay_steps`, then the base value; each further step multiplies it by `factor`.

    ReVisual-R1's text stage schedules its entropy coefficient this way (arXiv:2506.04207); its released code has
    `delay_steps=20` and `factor=0.985`.

    >>> [round(DelayedDecay(delay_steps=2, factor=0.9)(step, 100), 3) for step in (0, 1, 2, 3, 4)]
    [0.0, 0.0, 1.0, 0.9, 0.81]

    Raises:
        ValueError: If `delay_steps` is negative or `factor` is outside [0, 1].
    """

    delay_steps: int = 0
    factor: float = 1.0

    def __post_init__(self) -> None:
        _check_warmup(self.delay_steps, "delay_steps")
        if not 0 <= self.factor <= 1:
            raise ValueError(
                f"factor is {self.factor}; each step multiplies the value by it, so it must be between 0 and 1"
            )

    def __call__(self, step: int | float, num_steps: int) -> float:
        return 0.0 if step < self.delay_steps else self.factor ** (step - self.delay_steps)


def _check_warmup(steps: int, name: str = "warmup_steps") -> None:
    if steps < 0:
        raise ValueError(f"{name} is {steps}; it must be at least 0")
