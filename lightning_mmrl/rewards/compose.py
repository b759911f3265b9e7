"""Combines several rewards into one score."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

from lightning_mmrl.errors import FOREIGN_FAILURES, ConfigError, MmrlError, RewardError
from lightning_mmrl.protocols.plain import RewardFn
from lightning_mmrl.types.records import Completion, Sample, Score
from lightning_mmrl.workers.serving import announce


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedReward:
    """Weighted sum of named rewards (`parts`): total = sum of weight * value over the parts that apply.

    A part that returns None does not apply to the sample and is left out; the other weights are not rescaled. A part
    with weight 0 is only recorded. `Score.components` has the unweighted value of each part.

    Raises:
        ConfigError: `parts` is empty, `parts` and `weights` have different keys, or a weight is not a finite number.

    >>> def short(sample, completion):
    ...     return float(completion.num_tokens < 8)
    >>> reward = WeightedReward(parts={"short": short}, weights={"short": 0.5})
    >>> reward.score(Sample(id="clip", messages=()), Completion(text="happy", num_tokens=1, truncated=False)).total
    0.5
    """

    parts: Mapping[str, RewardFn]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", dict(self.parts))
        object.__setattr__(self, "weights", dict(self.weights))
        if not self.parts:
            raise ConfigError("rewards.parts is empty; name at least one reward")
        for name in self.weights.keys() - self.parts.keys():
            nearest = difflib.get_close_matches(name, self.parts, n=1, cutoff=0.0)[0]
            raise ConfigError(f"rewards.weights.{name} weighs no part; did you mean {nearest!r}?")
        for name in self.parts:
            if name not in self.weights:
                raise ConfigError(f"rewards.weights.{name} is missing; give the part {name!r} a weight")
            if not _is_finite(self.weights[name]):
                raise ConfigError(f"rewards.weights.{name} is {self.weights[name]!r}; give a finite number")

    def score(self, sample: Sample, completion: Completion) -> Score:
        """Scores one completion; a failing part makes the score invalid, which is not the same as zero.

        >>> def broken(sample, completion):
        ...     return float("nan")
        >>> reward = WeightedReward(parts={"broken": broken}, weights={"broken": 1.0})
        >>> reward.score(Sample(id="clip", messages=()), Completion(text="", num_tokens=0, truncated=False)).reason
        'broken: returned nan, not a finite number'
        """
        components: dict[str, float] = {}
        for name, part in self.parts.items():
            announce(name)
            try:
                value = evaluate(part, sample, completion)
            except FOREIGN_FAILURES as error:  # a failing verifier must not end the run
                why = str(error) if isinstance(error, MmrlError) else f"{type(error).__name__}: {error}"
                if isinstance(error, MemoryError):
                    why = "memory limit exceeded"
                return Score(total=0.0, components=components, valid=False, reason=f"{name}: {why}", failed=name)
            if value is not None:
                components[name] = value
        if not components:
            return Score(total=0.0, components={}, valid=False, reason="no reward applies")
        total = sum(self.weights[name] * value for name, value in components.items())
        return Score(total=total, components=components)


def evaluate(part: RewardFn, sample: Sample, completion: Completion) -> float | None:
    """The value of one reward for one completion.

    Raises:
        RewardError: The value is neither a finite number nor None.

    >>> evaluate(lambda sample, completion: True, Sample(id="clip", messages=()), Completion(
    ...     text="", num_tokens=0, truncated=False))
    1.0
    """
    value = part(sample, completion)
    if value is None:
        return None
    if not _is_finite(value):
        raise RewardError(f"returned {value!r}, not a finite number")
    return float(value)


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
