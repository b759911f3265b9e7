"""Efficient-length reward: room below a token budget pays."""

from dataclasses import dataclass

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.types.records import Completion, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficientLength:
    """clip(alpha * (budget - L) + delta, 0, 1) for a completion of L tokens (arXiv:2506.04207, section 4.1.2, eq. 5-6).

    It pays for any short text, right or wrong: give it a small weight (0.05 in the released code) beside an accuracy.

    **Deviations**: none; `alpha` and `delta` are those of the released math reward, its text reward has 0.001 and 0.95.
    The release leaves this reward off by default.

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
