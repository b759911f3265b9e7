"""Combines several rewards into one score."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

from lightning_mmrl.errors import FOREIGN_FAILURES, ConfigError, MmrlError, RewardError
from lightning_mmrl.protocols.plain import RewardFn
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.types.records import Completion, Sample, Score
from lightning_mmrl.workers.serving import announce, note_shortage

NOTHING_APPLIES = "no reward applies"
"""Reason of the score of an answer to which no component applies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedReward:
    """Weighted sum of named rewards: total = sum of weight * value over the components that apply.

    A component that returns None does not apply to the sample and is left out; the other weights are not rescaled. A
    component with weight 0 is only recorded. `Score.components` has the unweighted value of each component.

    Raises:
        ConfigError: There are no components, the weights have other names, or a weight is not a finite number.

    >>> def short(sample, completion):
    ...     return float(completion.num_tokens < 8)
    >>> reward = WeightedReward(components={"short": short}, settings=RewardSettings(weights={"short": 0.5}))
    >>> reward.score(Sample(id="clip", messages=()), Completion(text="happy", num_tokens=1, truncated=False)).total
    0.5
    """

    components: Mapping[str, RewardFn]
    settings: RewardSettings

    def __post_init__(self) -> None:
        object.__setattr__(self, "components", dict(self.components))
        if not self.components:
            raise ConfigError("rewards.components is empty; name at least one reward")
        for name in self.settings.weights.keys() - self.components.keys():
            nearest = difflib.get_close_matches(name, self.components, n=1, cutoff=0.0)[0]
            raise ConfigError(f"rewards.weights.{name} weighs no component; did you mean {nearest!r}?")
        for name in self.components:
            if name not in self.settings.weights:
                raise ConfigError(f"rewards.weights.{name} is missing; give the component {name!r} a weight")
            weight: object = self.settings.weights[name]
            if not (isinstance(weight, Real) and math.isfinite(weight)):
                raise ConfigError(f"rewards.weights.{name} is {weight!r}; give a finite number")

    def score(self, sample: Sample, completion: Completion) -> Score:
        """Scores one completion; a failing component makes the score invalid, which is not the same as zero.

        >>> def broken(sample, completion):
        ...     return float("nan")
        >>> reward = WeightedReward(components={"broken": broken}, settings=RewardSettings(weights={"broken": 1.0}))
        >>> reward.score(Sample(id="clip", messages=()), Completion(text="", num_tokens=0, truncated=False)).reason
        'broken: returned nan, not a finite number'
        """
        components: dict[str, float] = {}
        for name, reward in self.components.items():
            announce(name)
            try:
                value = evaluate(reward, sample, completion)
            except FOREIGN_FAILURES as error:  # a failing verifier must not end the run
                why = str(error) if isinstance(error, MmrlError) else f"{type(error).__name__}: {error}"
                if isinstance(error, MemoryError):
                    note_shortage()
                    why = "memory limit exceeded"
                return Score(total=0.0, components=components, valid=False, reason=f"{name}: {why}", failed=name)
            if value is not None:
                components[name] = value
        if not components:
            return Score(total=0.0, components={}, valid=False, reason=NOTHING_APPLIES)
        total = sum(self.settings.weights[name] * value for name, value in components.items())
        return Score(total=total, components=components)


def evaluate(reward: RewardFn, sample: Sample, completion: Completion) -> float | None:
    """The value of one reward for one completion.

    Raises:
        RewardError: The value is neither a finite number nor None.

    >>> evaluate(lambda sample, completion: True, Sample(id="clip", messages=()), Completion(
    ...     text="", num_tokens=0, truncated=False))
    1.0
    """
    value: object = reward(sample, completion)
    if value is None:
        return None
    if not (isinstance(value, Real) and math.isfinite(value)):
        raise RewardError(f"returned {value!r}, not a finite number")
    return float(value)
