"""Compares two sets of scores of the same responses."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import StatisticsError, correlation, fmean

from lightning_mmrl.types.records import Score

Groups = Sequence[Sequence[Score]]
"""Scores of the G responses of each prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A response whose total or validity changed; `group` and `response` are its indices in `Groups`."""

    group: int
    response: int
    old: Score
    new: Score

    @property
    def size(self) -> float:
        """Absolute change of the total; infinite if the score is invalid on one side."""
        return abs(self.new.total - self.old.total) if self.old.valid and self.new.valid else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentChange:
    """One reward component in the old and in the new scores.

    The means are over valid responses to which the component applies; None if there are none. `num_up`, `num_down` and
    `correlation` (Pearson; None for constant values) are over responses that are valid on both sides. For these three,
    a component that does not apply on one side counts as 0 there, because it adds nothing to the total in training.
    """

    name: str
    old_mean: float | None
    new_mean: float | None
    num_up: int
    num_down: int
    correlation: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSummary:
    """Figures that show how much a group-relative algorithm can learn from the scores.

    `flat` is the fraction of groups whose valid totals are all equal, so that their advantages are zero. `pass_rate` is
    the mean over groups of the fraction of valid responses whose pass component is at least 1. `reasons` counts the
    reasons of invalid scores.
    """

    flat: float
    pass_rate: float | None
    num_invalid: int
    reasons: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescoring:
    """The result of a comparison; `changes` are sorted by size, the largest first."""

    num_groups: int
    num_responses: int
    changes: tuple[Change, ...]
    components: tuple[ComponentChange, ...]
    old: GroupSummary
    new: GroupSummary


def compare_scores(old: Groups, new: Groups, pass_component: str) -> Rescoring:
    """Compares two sets of scores of the same shape."""
    pairs = list(zip(chain.from_iterable(old), chain.from_iterable(new), strict=True))
    names = dict.fromkeys(name for pair in pairs for score in pair for name in score.components)
    changes = [
        Change(group=group, response=response, old=before, new=after)
        for group, (befores, afters) in enumerate(zip(old, new, strict=True))
        for response, (before, after) in enumerate(zip(befores, afters, strict=True))
        if before.valid != after.valid or (before.valid and not same(before.total, after.total))
    ]
    return Rescoring(
        num_groups=len(old),
        num_responses=len(pairs),
        changes=tuple(sorted(changes, key=lambda change: -change.size)),
        components=tuple(_component(name, pairs) for name in names),
        old=_summary(old, pass_component),
        new=_summary(new, pass_component),
    )


def same(first: float, second: float) -> bool:
    """Whether two rewards are equal in float32, the type that training uses for rewards.

    >>> same(0.1, 0.10000000149011612)
    True
    """
    return math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-6)


def _component(name: str, pairs: Sequence[tuple[Score, Score]]) -> ComponentChange:
    both = [
        (old.components.get(name, 0.0), new.components.get(name, 0.0)) for old, new in pairs if old.valid and new.valid
    ]
    try:
        related = correlation([before for before, _ in both], [after for _, after in both])
    except StatisticsError:  # fewer than two values, or a constant
        related = None
    moved = [(before, after) for before, after in both if not same(before, after)]
    return ComponentChange(
        name=name,
        old_mean=_mean([old.components[name] for old, _ in pairs if old.valid and name in old.components]),
        new_mean=_mean([new.components[name] for _, new in pairs if new.valid and name in new.components]),
        num_up=sum(after > before for before, after in moved),
        num_down=sum(after < before for before, after in moved),
        correlation=related,
    )


def _summary(groups: Groups, pass_component: str) -> GroupSummary:
    invalid = [score for group in groups for score in group if not score.valid]
    valid = [[score for score in group if score.valid] for group in groups]
    rates = [
        fmean(score.components.get(pass_component, 0.0) >= 1.0 for score in group)
        for group in valid
        if any(pass_component in score.components for score in group)
    ]
    totals = [[score.total for score in group] for group in valid]
    return GroupSummary(
        flat=fmean(not group or same(min(group), max(group)) for group in totals),
        pass_rate=_mean(rates),
        num_invalid=len(invalid),
        reasons=Counter(score.reason or "no reason was recorded" for score in invalid),
    )


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
