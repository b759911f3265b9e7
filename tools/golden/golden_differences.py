"""Where two trajectories of the same run differ, from the first step on."""

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RELATIVE = 1e-5
"""Processors add the terms of a sum in other orders. In float64 that moves a figure by 1e-12, in float32 by 1e-6."""
ABSOLUTE = 5e-6
"""For figures that are rounding and nothing else: engine and policy are 2e-6 apart in float32, and a sum of advantages,
which are float32 in every run, is 1e-8 in place of 0."""

DIGESTS = ("*digest",)
"""Hashes of weights: equal on one machine alone."""
ORDER = ("rollouts", "metrics", "train", "states")
"""Compared first within a step: the sampled tokens decide all that follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How two trajectories are compared.

    Attributes:
        relative: How far numbers may be apart, as a share of the larger one; 0: they are equal to the last bit.
        absolute: How far they may be apart near zero.
        without: Patterns of the names that are not compared.
        renamed: Names in the first trajectory, and in the second.
    """

    relative: float = 0.0
    absolute: float = 0.0
    without: tuple[str, ...] = ()
    renamed: Mapping[str, str] | None = None


SAME_MACHINE = Rules()
OTHER_MACHINE = Rules(relative=RELATIVE, absolute=ABSOLUTE, without=DIGESTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A number that two trajectories do not share; None where one of them does not have it."""

    stage: str
    step: int | None
    name: str
    first: Any
    second: Any

    def __str__(self) -> str:
        where = f"stage {self.stage}, " + (f"step {self.step}" if self.step is not None else "at its end")
        return f"{where}, {self.name}: {self.first!r} and {self.second!r}"


_Key = tuple[str, float, int, str]
"""Stage, step, rank of the kind and name: sorts by when a number came about."""


def differences(first: Mapping[str, Any], second: Mapping[str, Any], rules: Rules) -> list[Difference]:
    """All differences of two trajectories, the earliest first.

    >>> before = {"00-reason": {"metrics": {"rollout/reward_mean": {"1": 0.5, "2": 0.25}}}}
    >>> after = {"00-reason": {"metrics": {"rollout/reward_mean": {"1": 0.5, "2": 0.75}}}}
    >>> print(*differences(before, after, SAME_MACHINE))
    stage 00-reason, step 2, rollout/reward_mean: 0.25 and 0.75
    """
    here, there = (dict(_flat(trajectory)) for trajectory in (first, second))
    here = {(*key[:3], (rules.renamed or {}).get(key[3], key[3])): value for key, value in here.items()}
    found = []
    for key in sorted(here.keys() | there.keys()):
        stage, step, _, name = key
        if any(fnmatch.fnmatch(name, pattern) for pattern in rules.without):
            continue
        if key not in here or key not in there or not _equal(here[key], there[key], rules):
            number = int(step) if math.isfinite(step) else None
            found.append(Difference(stage=stage, step=number, name=name, first=here.get(key), second=there.get(key)))
    return found


def _flat(trajectory: Mapping[str, Any]) -> Iterator[tuple[_Key, Any]]:
    for stage, parts in trajectory.items():
        for place, part in enumerate(ORDER):
            for name, steps in parts.get(part, {}).items():
                label = name if "/" in name else f"{part}/{name}"
                yield from (((stage, float(step), place, label), value) for step, value in steps.items())
        for place, part in enumerate(("artifacts", "handoff", "evaluation"), start=len(ORDER)):
            yield from (((stage, math.inf, place, name), value) for name, value in _leaves(parts.get(part, {}), part))


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, f"{name}/{key}")
    else:
        yield name, value


def _equal(first: Any, second: Any, rules: Rules) -> bool:
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(_equal(a, b, rules) for a, b in zip(first, second, strict=True))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (first, second))
    if numbers and rules.relative:
        return math.isclose(first, second, rel_tol=rules.relative, abs_tol=rules.absolute)
    return type(first) is type(second) and first == second


def told(run: str, found: Sequence[Difference]) -> str:
    """The first difference of a run, and what else differs."""
    if not found:
        return f"{run}: equal"
    others = sorted({each.name for each in found} - {found[0].name})
    return f"{run}: {found[0]}" + (
        f"; then {', '.join(others[:6])}{', ...' if len(others) > 6 else ''}" if others else ""
    )
