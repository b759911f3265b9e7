"""The result of a comparison: what each arm reached with each seed, and what that cost."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from lightning_mmrl.evaluation.arms import Contrast, mean_over_folds, over_seeds
from lightning_mmrl.evaluation.seeds import PairedT
from lightning_mmrl.report.comparison import Plan
from lightning_mmrl.settings.budget import MEASURES

AT = ("value", "base", "best")
"""Where a run was measured: after the last trained stage, before the first one that counts, at the best validation."""

FAILED, NOT_BEGUN, NOT_ENDED = "failed with exit code", "has not begun", "has not ended"
"""Beginnings of the reasons for which a run has no value."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpent:
    """What a stage of a run cost, and whether that counts; None where it is unknown."""

    stage: str
    counts: bool
    flops: float | None
    steps: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One planned run.

    Attributes:
        arm: Its arm.
        seed: Its seed.
        fold: Its fold; None without folds.
        folder: Its folder, relative to that of the comparison; None if the run has not begun.
        problem: The reason for which it has no value; None if it has one.
        value: The metric after the last trained stage.
        base: The metric before the first trained stage that counts; None if that was not evaluated.
        best: The metric of the weights with the best validation; None if they were not evaluated.
        stages: What its finished stages cost.
        num_samples: The samples that this value is of.
        doubts: What makes it doubtful, in words.
    """

    arm: str
    seed: int
    fold: str | None
    folder: str | None = None
    problem: str | None = None
    value: float | None = None
    base: float | None = None
    best: float | None = None
    stages: tuple[StageSpent, ...] = ()
    num_samples: int | None = None
    doubts: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Arm, seed and fold in words."""
        return f"{self.arm}, seed {self.seed}{'' if self.fold is None else f', {self.fold}'}"

    def spent(self, measure: str) -> float | None:
        """What its stages that count cost together; None if that is unknown for one of them."""
        known = [getattr(stage, measure) for stage in self.stages if stage.counts]
        return math.fsum(known) if known and None not in known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The result of a comparison, finished or not.

    Attributes:
        plan: The comparison.
        metric: The name of the metric; None if no run has a result.
        cells: All planned runs, by arm, seed and fold.
        contrasts: Differences between arms after their last stages.
        best_contrasts: The same at the best validation, with a correction of its own; empty if nothing was evaluated.
        notes: One sentence each on what failed, is missing, or is not comparable.
    """

    plan: Plan
    metric: str | None
    cells: tuple[Cell, ...]
    contrasts: tuple[Contrast, ...]
    best_contrasts: tuple[Contrast, ...]
    notes: tuple[str, ...]

    def by_seed(self, at: str = "value") -> dict[str, dict[int, float]]:
        """For each arm the values of its seeds, each the mean over all folds; a seed that lacks a fold is left out."""
        found: dict[str, dict[int, float]] = {}
        for arm in self.plan.arms:
            of_seed: dict[int, dict[str | None, float]] = {}
            for cell in self.of(arm):
                if (value := getattr(cell, at)) is not None:
                    of_seed.setdefault(cell.seed, {})[cell.fold] = value
            means = {seed: mean_over_folds(values, self.plan.folds) for seed, values in of_seed.items()}
            found[arm] = {seed: mean for seed, mean in means.items() if mean is not None}
        return found

    def of(self, arm: str) -> list[Cell]:
        """The planned runs of an arm."""
        return [cell for cell in self.cells if cell.arm == arm]

    @property
    def measure(self) -> str:
        """The unit in which arms are compared: that of the budget; without one operations, or steps if unknown."""
        if self.plan.measure is not None:
            return self.plan.measure
        known = [cell.spent("flops") for cell in self.cells if cell.value is not None]
        return "flops" if known and None not in known else "steps"

    def shares(self, arm: str) -> list[float]:
        """What each run of an arm with a value spent, as a share of the budget, or of the baseline's mean without one.

        Empty if that is unknown for one of them.
        """
        whole = self.plan.total
        if whole is None:
            spent = self._spent(self.plan.baseline)
            whole = fmean(spent) if spent else None
        return [each / whole for each in self._spent(arm)] if whole else []

    def _spent(self, arm: str) -> list[float]:
        spent = [cell.spent(self.measure) for cell in self.of(arm) if cell.value is not None]
        known = [each for each in spent if each is not None]
        return known if len(known) == len(spent) else []

    def is_equal(self, *arms: str) -> bool | None:
        """Whether all runs of these arms spent the same; None if unknown.

        Each is within the tolerance of the budget, and the largest and the smallest are no further apart.
        """
        known = [self.shares(arm) for arm in arms]
        if not all(known):
            return None
        shares, most = [share for each in known for share in each], self.plan.tolerance + _ROUNDING
        return max(shares) - min(shares) <= most and all(abs(share - 1) <= most for share in shares)

    @property
    def is_complete(self) -> bool:
        """Whether each planned run has a value."""
        return all(cell.value is not None for cell in self.cells)

    def plain(self) -> dict[str, Any]:
        """Plain values for a file; numbers that are not finite do not occur."""
        return {
            "version": 1,
            "name": self.plan.name,
            "question": self.plan.question,
            "exploratory": self.plan.exploratory,
            "baseline": self.plan.baseline,
            "set": self.plan.set_name,
            "metric": self.metric,
            "measure": self.measure,
            "budget": self.plan.total,
            "tolerance": self.plan.tolerance,
            "complete": self.is_complete,
            "arms": {
                arm: {at: _plain_mean(self.by_seed(at)[arm]) for at in AT}
                | {"spent_shares": self.shares(arm), "equal_budget": self.is_equal(arm)}
                for arm in self.plan.arms
            },
            "differences": [
                each.plain() | {"equal_budget": self.is_equal(each.arm, each.over)} for each in self.contrasts
            ],
            "differences_at_best_validation": [each.plain() for each in self.best_contrasts],
            "runs": [
                {**asdict(cell), "spent": {measure: cell.spent(measure) for measure in MEASURES}} for cell in self.cells
            ],
            "notes": list(self.notes),
        }


def mean_of(values: Mapping[int, float]) -> PairedT | None:
    """The mean of an arm over its seeds with its t interval; None with fewer than two seeds or without spread."""
    return over_seeds(list(values.values()), max(map(abs, values.values()), default=0.0))


def _plain_mean(values: Mapping[int, float]) -> dict[str, Any]:
    found = mean_of(values)
    ends = {} if found is None else {"low": found.low, "high": found.high, "sd": found.sd}
    by_seed = {str(seed): value for seed, value in sorted(values.items())}
    return {"mean": fmean(values.values()) if values else None, **ends, "by_seed": by_seed}
