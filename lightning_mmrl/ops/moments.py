"""Mean and variance of numbers that arrive in batches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Number, mean and sum of squared deviations of all numbers so far, in float64.

    Two batches with sums of squares M2, means m and sizes n join by M2 = M2_a + M2_b + (m_b - m_a)^2 n_a n_b / (n_a +
    n_b) (Chan, Golub and LeVeque 1979, eq. 2.1). The sums of a batch are rounded once, so that its order and its spread
    over ranks do not matter.

    >>> Moments().plus([1.0, 2.0]).plus([3.0, 4.0])
    Moments(count=4, mean=2.5, squares=5.0)
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def plus(self, batch: Sequence[float]) -> Self:
        """The moments with one more batch of numbers."""
        if not batch:
            return self
        size, total = len(batch), self.count + len(batch)
        mean = math.fsum(batch) / size
        squares = math.fsum((number - mean) ** 2 for number in batch)
        difference = mean - self.mean
        return type(self)(
            count=total,
            mean=self.mean + difference * size / total,
            squares=self.squares + squares + difference**2 * self.count * size / total,
        )

    @property
    def variance(self) -> float:
        """Mean squared deviation; 0 without numbers.

        >>> Moments().plus([1.0, 3.0]).variance
        1.0
        """
        return self.squares / self.count if self.count else 0.0

    def state_dict(self) -> dict[str, int | float]:
        """Returns the fields."""
        return asdict(self)

    @classmethod
    def of_state(cls, state: Mapping[str, int | float]) -> Self:
        """Returns the moments whose state was saved."""
        return cls(count=int(state["count"]), mean=state["mean"], squares=state["squares"])
