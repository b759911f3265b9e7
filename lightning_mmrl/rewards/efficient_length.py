"""Efficient-length reward: shorter completions earn more, relative to a token budget."""

from dataclasses import dataclass

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.types.records import Completion, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficientLength:
    """clip(alpha * (budget - L) + delta, 0, 1) for a completion of L tokens (arXiv:2506.04207, section 4.1.2, eq. 5-6).

    Any short text earns it, right or wrong, so combine it with an accuracy reward and give it a small weight (0.05 in
    the released code).

    **Deviations**: none. The defaults of `alpha` and `delta` are the released values for mathematics; for text they are
    0.001 and 0.95. The release disables this reward by default.

    >>> reward = EfficientLength(budget=100)
    >>> sample = Sample(id="sum", messages=())
    >>> [reward(sample, Completion(text="", num_tokens=count, truncated=False)) for count in (0, 100, 150, 300)]
    [1.0, 0.5, 0.25, 0.0]
    """

    budget: int
    alpha: float = 0.005
    delta: float = 0.5

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ConfigError(f"budget is {self.budget}; it must be at least 1 token")
        if self.alpha <= 0:
            raise ConfigError(f"alpha is {self.alpha}; it must be above 0")

    def __call__(self, sample: Sample, completion: Completion) -> float:
        return min(1.0, max(0.0, self.alpha * (self.budget - completion.num_tokens) + self.delta))
