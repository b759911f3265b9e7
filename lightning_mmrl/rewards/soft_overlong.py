"""Soft overlong punishment: a penalty that grows over the last tokens before the length limit."""

from dataclasses import dataclass

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.types.records import Completion, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftOverlong:
    """0 up to `max_tokens - cache` tokens, then falling linearly to -1 at `max_tokens`, and -1 beyond.

    For L tokens in between it is ((max_tokens - cache) - L) / cache (DAPO, arXiv:2503.14476, eq. 13). Set `max_tokens`
    to the stage's `sampling.max_new_tokens`, the largest possible length.

    **Deviations**: none.

    >>> reward = SoftOverlong(max_tokens=100, cache=20)
    >>> sample = Sample(id="sum", messages=())
    >>> [reward(sample, Completion(text="", num_tokens=count, truncated=False)) for count in (80, 85, 100, 101)]
    [0.0, -0.25, -1.0, -1.0]
    """

    max_tokens: int
    cache: int

    def __post_init__(self) -> None:
        if not 0 < self.cache <= self.max_tokens:
            raise ConfigError(f"cache is {self.cache}; it must be above 0 and at most max_tokens {self.max_tokens}")

    def __call__(self, sample: Sample, completion: Completion) -> float:
        over = completion.num_tokens - (self.max_tokens - self.cache)
        return -min(1.0, over / self.cache) if over > 0 else 0.0
