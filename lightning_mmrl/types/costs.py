"""The costs of steps in plain numbers: tokens by kind of pass, operations, and seconds by phase and rank."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Self, TypeVar

T = TypeVar("T", int, float)

WAIT, OTHER = "wait", "other"
"""Phases of waiting for other ranks, and of everything that belongs to no other phase."""
SAMPLE, SCORE, UPDATE = "sample", "score", "update"
"""Kinds of passes: sampling; a forward pass whose result is fixed (old and reference log-probabilities, values); a
forward pass with the backward pass that follows it."""
OPTIMIZE = "optimize"
"""The phase of an update: scoring, gradients and the step of the optimizer."""
AWAIT = "await_rollout"
"""The phase in which an iteration waits for a rollout that is sampled ahead, in the place of `generate`."""
GRADIENT = "+gradient"
"""Ends the name of tower rows through which a gradient goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Logical tokens of passes of the text model, and the pairs of positions that attention compares.

    A pass counts each prompt once for all its completions, and no padding, copy or split of a prompt.
    """

    prompt_tokens: int = 0
    prompt_pairs: int = 0
    completion_tokens: int = 0
    completion_pairs: int = 0

    @classmethod
    def of(cls, prompts: Sequence[int], completions: Sequence[Sequence[int]]) -> Self:
        """The work of one pass over prompts of so many tokens, each with completions of so many tokens.

        >>> Work.of([4], [[2, 2]])
        Work(prompt_tokens=4, prompt_pairs=8, completion_tokens=4, completion_pairs=20)
        """
        return cls(
            prompt_tokens=sum(prompts),
            prompt_pairs=sum(prompt * prompt // 2 for prompt in prompts),
            completion_tokens=sum(map(sum, completions)),
            completion_pairs=sum(
                length * (prompt + length // 2)
                for prompt, lengths in zip(prompts, completions, strict=True)
                for length in lengths
            ),
        )

    def __add__(self, other: "Work") -> "Work":
        return Work(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            prompt_pairs=self.prompt_pairs + other.prompt_pairs,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            completion_pairs=self.completion_pairs + other.completion_pairs,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Counted work: passes of the text model by kind, and feature rows of the media towers.

    `rows` maps the kind of a medium and whether a gradient went through its tower (`video`, `video+gradient`) to the
    rows that the tower returned.
    """

    passes: Mapping[str, Work] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCosts:
    """The costs of some steps on one rank.

    Attributes:
        seconds: Seconds by phase. At any time a rank is in one phase, so they add up to the time that passed.
        waits: The part of the phase `wait` by the phase in which the rank waited.
        tokens: `prompt` and `completion`: tokens of all scoring passes, and of prompts that were sampled from;
            `generated`: tokens that were sampled.
        operations: Operations of `sampling` and of `training`, if the sizes of the model are known.
        num_microbatches: Microbatches with a backward pass.
        positions: Positions that these microbatches computed, with padding and copies of prompts.
        logical: The tokens among these positions, a prompt once for its completions.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    waits: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    operations: Mapping[str, int] = field(default_factory=dict)
    num_microbatches: int = 0
    positions: int = 0
    logical: int = 0

    @property
    def total_s(self) -> float:
        """All seconds."""
        return math.fsum(self.seconds.values())

    @property
    def wait_share(self) -> float:
        """The share of the time that this rank waited for others."""
        return self.seconds.get(WAIT, 0.0) / self.total_s if self.total_s else 0.0

    def __add__(self, other: "RankCosts") -> "RankCosts":
        return RankCosts(
            seconds=_sum(self.seconds, other.seconds),
            waits=_sum(self.waits, other.waits),
            tokens=_sum(self.tokens, other.tokens),
            operations=_sum(self.operations, other.operations),
            num_microbatches=self.num_microbatches + other.num_microbatches,
            positions=self.positions + other.positions,
            logical=self.logical + other.logical,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCosts:
    """The costs of a stage: of its steps, each counted once, on all ranks.

    Attributes:
        num_steps: Steps that are counted.
        ranks: The costs of each rank.
        peak: Operations a second that one device can do at most; None if unknown.
        samples_here: Whether the devices of the ranks sample, and not others.
    """

    num_steps: int = 0
    ranks: tuple[RankCosts, ...] = ()
    peak: float | None = None
    samples_here: bool = True

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, the mean over the ranks; the longest phase first."""
        means = {name: found / len(self.ranks) for name, found in _total(r.seconds for r in self.ranks).items()}
        return dict(sorted(means.items(), key=lambda item: -item[1]))

    @property
    def total_s(self) -> float:
        """All seconds, the mean over the ranks."""
        return math.fsum(self.seconds.values())

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens by kind, of all ranks."""
        return _total(rank.tokens for rank in self.ranks)

    @property
    def operations(self) -> dict[str, int]:
        """Operations of all ranks; empty if the sizes of the model are unknown."""
        return _total(rank.operations for rank in self.ranks)

    @property
    def waits(self) -> dict[str, float]:
        """The seconds of waiting by the phase in which a rank waited, the mean over the ranks."""
        return {name: found / len(self.ranks) for name, found in _total(r.waits for r in self.ranks).items()}

    def mfu(self, *kinds: str, phases: Sequence[str] = ()) -> float | None:
        """Model FLOPs utilization: operations as a share of the most that the devices can do in the same time.

        Args:
            kinds: `sampling`, `training`; if none is given, all that the devices of the ranks do.
            phases: The phases whose time counts; all, if none is given.

        Returns:
            The share; None if the peak of the device, the sizes of the model or the time is unknown.
        """
        counted = kinds or (("sampling", "training") if self.samples_here else ("training",))
        found, seconds = self.operations, self.seconds
        time_s = math.fsum(seconds.get(phase, 0.0) for phase in phases or seconds)
        if self.peak is None or not found or time_s <= 0:
            return None
        return sum(found.get(kind, 0) for kind in counted) / (self.peak * len(self.ranks) * time_s)

    def spent(self, measure: str) -> int | float:
        """The part of a budget in `flops`, `steps` or `seconds` that this takes; `flops`: of training and sampling."""
        if measure == "flops":
            return sum(self.operations.values())
        return self.num_steps if measure == "steps" else self.total_s

    def __add__(self, other: "StageCosts") -> "StageCosts":
        """The costs of both; a rank that only one of them has is kept as it is."""
        size = max(len(self.ranks), len(other.ranks))
        mine, theirs = (each.ranks + (RankCosts(),) * (size - len(each.ranks)) for each in (self, other))
        return StageCosts(
            num_steps=self.num_steps + other.num_steps,
            ranks=tuple(a + b for a, b in zip(mine, theirs, strict=True)),
            peak=other.peak,
            samples_here=other.samples_here,
        )

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Self:
        """The costs whose `asdict` was stored."""
        return cls(**{**plain, "ranks": tuple(RankCosts(**rank) for rank in plain["ranks"])})


NO_COSTS = StageCosts()
"""Before the first step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBudget:
    """Up to where a stage may go.

    Attributes:
        stage: The name of the stage.
        measure: `flops`, `steps` or `seconds`.
        ends_at: The limit of the costs of the stage and of all counted stages before it, together.
        before: The costs of the counted stages before it.
    """

    stage: str
    measure: str
    ends_at: int | float
    before: int | float = 0

    @property
    def own(self) -> Fraction:
        """The costs that are left for the stage, exactly."""
        return Fraction(self.ends_at) - Fraction(self.before)


def _sum(first: Mapping[str, T], second: Mapping[str, T]) -> dict[str, T]:
    return _total((first, second))


def _total(parts: Iterable[Mapping[str, T]]) -> dict[str, T]:
    """Sums by name."""
    total: dict[str, T] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total[name] + amount if name in total else amount
    return total
