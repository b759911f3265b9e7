"""Reads the runs of a comparison: what each arm reached with each seed, and what that cost."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning_mmrl.errors import MmrlError
from lightning_mmrl.evaluation.arms import Contrast, compare_arms, mean_over_folds, over_seeds
from lightning_mmrl.evaluation.seeds import PairedT
from lightning_mmrl.report.comparison import Plan, PlannedRun, read_plan
from lightning_mmrl.report.page import FAULTS
from lightning_mmrl.report.run_files import SUMMARY, Evaluated, RunFiles, StageFiles, read_run, results_in
from lightning_mmrl.settings.budget import MEASURES
from lightning_mmrl.settings.stage import BASE

AT = ("value", "base", "best")
"""Where a run was measured: after the last trained stage, before the first one that counts, at the best validation."""

_FAILED, _NOT_BEGUN, _NOT_ENDED = "failed with exit code", "has not begun", "has not ended"
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


def summarize(folder: Path, other: tuple[str, str] | None = None) -> Summary:
    """Reads a comparison, which may still be running.

    Args:
        folder: The folder of the comparison.
        other: Set and metric in the place of those that the comparison states; the result is then exploratory.

    Raises:
        DataError: The folder is none of a comparison, or its plan is damaged.
    """
    plan = read_plan(folder)
    if other is not None:
        plan = replace(plan, set_name=other[0], metric=other[1], exploratory=True)
    begun = {(run.arm, run.seed, run.fold): run for run in plan.runs}
    found = [
        _read(plan, Cell(arm=arm, seed=seed, fold=fold), begun.get((arm, seed, fold)))
        for arm in [plan.baseline, *(arm for arm in plan.arms if arm != plan.baseline)]
        for seed in plan.seeds
        for fold in plan.folds
    ]
    metric = plan.metric or next((each.results["value"].headline for each in found if "value" in each.results), None)
    cells = [_measured(each, plan, metric) for each in found]
    summary = Summary(plan=plan, metric=metric, cells=tuple(cells), contrasts=(), best_contrasts=(), notes=())
    values, best = summary.by_seed(), summary.by_seed("best")
    compared = compare_arms(values, plan.baseline, all_pairs=plan.all_pairs)
    at_best = compare_arms(best, plan.baseline, all_pairs=plan.all_pairs) if any(best.values()) else ()
    summary = replace(summary, contrasts=compared, best_contrasts=at_best)
    notes = [*_run_notes(summary), *_best_notes(summary, begun.values()), *_size_notes(found), *_pair_notes(summary)]
    return replace(summary, notes=(*notes, *_budget_notes(summary)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    cell: Cell
    results: Mapping[str, Evaluated]


def _read(plan: Plan, cell: Cell, run: PlannedRun | None) -> _Read:
    """The results of a run on the set of the comparison, by where it was measured; none, with the reason."""
    if run is None:
        return _Read(cell=replace(cell, problem=_NOT_BEGUN), results={})
    place = plan.within(run.folder)
    if place is None:
        return _Read(cell=replace(cell, problem="its folder leads out of the comparison's"), results={})
    if run.exit_code is None and not place.exists():
        return _Read(cell=replace(cell, problem=_NOT_BEGUN), results={})
    cell = replace(cell, folder=run.folder)
    arm = plan.arms[cell.arm]
    try:
        files = read_run(place)
        stages = tuple(_spent(stage, stage.name not in arm.apart) for stage in files.stages if stage.result)
        cell = replace(cell, stages=stages, problem=_ended(run) or _unfinished(files, arm.order))
        return _Read(cell=cell, results={} if cell.problem else _results(plan, run, files))
    except MmrlError as error:
        return _Read(cell=replace(cell, problem=_ended(run) or f"cannot be read: {error}"), results={})
    except FAULTS as error:
        told = f"is damaged ({type(error).__name__}: {error})"
        return _Read(cell=replace(cell, problem=_ended(run) or told), results={})


def _ended(run: PlannedRun) -> str | None:
    if run.exit_code is None:
        return _NOT_ENDED
    return f"{_FAILED} {run.exit_code}" if run.exit_code else None


def _unfinished(files: RunFiles, order: Sequence[str]) -> str | None:
    """The reason for which a run that ended is not whole."""
    if not files.is_known:
        return f"cannot be read: {files.missing[0].rstrip('.')}"
    stages = {stage.name: stage for stage in files.stages}
    lacking = [name for name in order if name not in stages or stages[name].result is None]
    if lacking:
        return f"is damaged: its manifest has no finished {', '.join(lacking)}"
    return None if any(stages[name].trains for name in order) else "has no stage that trains"


def _results(plan: Plan, run: PlannedRun, files: RunFiles) -> dict[str, Evaluated]:
    arm = plan.arms[run.arm]
    trained = [stage for stage in files.stages if stage.trains and stage.name in arm.order]
    first = next((stage for stage in trained if stage.name not in arm.apart), None)
    at = {"value": trained[-1].name, "base": _start(first, trained)}
    known = {each.stage: each for each in files.evaluated if each.name == plan.set_name}
    found = {key: known[stage] for key, stage in at.items() if stage in known}
    if run.best is not None and plan.within(f"{run.best}/{SUMMARY}") is not None:
        best = results_in(plan.folder / run.best, at["value"], files.missing)
        found.update(("best", each) for each in best if each.name == plan.set_name)
    return found


def _start(first: StageFiles | None, trained: Sequence[StageFiles]) -> str:
    """The stage whose weights the first counted one started from, or the base model."""
    start = first.finished.content.get("starts_from") if first is not None and first.finished else None
    return str(start) if start in [stage.name for stage in trained] else BASE


def _spent(stage: StageFiles, counts: bool) -> StageSpent:
    """The costs of a finished stage."""
    assert stage.result is not None
    flops, steps, seconds = (_finite(stage.result.spent(measure)) for measure in MEASURES)
    return StageSpent(stage=stage.name, counts=counts, flops=flops, steps=steps, seconds=seconds)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _measured(found: _Read, plan: Plan, metric: str | None) -> Cell:
    """A run with its values, or with the reason for which it has none."""
    if found.cell.problem or metric is None:
        problem = found.cell.problem or f"was not evaluated on {plan.set_name}"
        return replace(found.cell, problem=problem)
    problems = {at: _problem(found.results.get(at), plan, metric) for at in AT}
    values = {at: None if problems[at] else found.results[at].metrics[metric] for at in AT}
    return replace(found.cell, problem=problems["value"], **values)


def _problem(result: Evaluated | None, plan: Plan, metric: str) -> str | None:
    if result is None:
        return f"was not evaluated on {plan.set_name} after its last trained stage"
    if plan.metric is None and result.headline != metric:
        return f"is measured by {result.headline}, others by {metric}"
    if metric not in result.metrics:
        return f"has no metric {metric} on {plan.set_name}"
    value = result.metrics[metric]
    return None if math.isfinite(value) else f"has {metric} {value} on {plan.set_name}"


def _run_notes(summary: Summary) -> list[str]:
    """Runs without a value; those that are still to come are only counted."""
    coming = Counter(cell.problem for cell in summary.cells if cell.problem in (_NOT_BEGUN, _NOT_ENDED))
    told = [f"{cell.title}: {cell.problem}." for cell in summary.cells if cell.problem and cell.problem not in coming]
    if any(cell.problem and cell.problem.startswith(_FAILED) for cell in summary.cells):
        told.append("Runs that failed are left out; if bad training made them fail, their arm looks better than it is.")
    return [*told, *(f"{number} of {len(summary.cells)} runs: {problem}." for problem, number in coming.items())]


def _best_notes(summary: Summary, runs: Iterable[PlannedRun]) -> list[str]:
    """Evaluations of the best validation that failed, or that the plan names and that have no figure."""
    told, planned = [], {(run.arm, run.seed, run.fold): run for run in runs}
    for cell in summary.cells:
        run = planned.get((cell.arm, cell.seed, cell.fold))
        if run is None or cell.value is None or cell.best is not None:
            continue
        if run.best_exit_code:
            told.append(
                f"{cell.title}: its weights with the best validation were not evaluated; `mmrl evaluate` failed with "
                f"exit code {run.best_exit_code}."
            )
        elif run.best is not None:
            told.append(
                f"{cell.title}: the evaluation of its weights with the best validation has no figure that can be read."
            )
    return told


def _size_notes(found: Sequence[_Read]) -> list[str]:
    """Runs that were evaluated on other numbers of samples are not comparable."""
    sizes = Counter(
        (each.cell.fold, result.num_samples) for each in found for at, result in each.results.items() if at == "value"
    )
    by_fold: dict[str | None, list[str]] = {}
    for (fold, size), number in sorted(sizes.items(), key=str):
        by_fold.setdefault(fold, []).append(f"{number} on {size:,} samples")
    return [
        f"Runs{'' if fold is None else f' of {fold}'} were evaluated on different numbers of samples: "
        f"{', '.join(each)}; their figures are not of one set."
        for fold, each in by_fold.items()
        if len(each) > 1
    ]


def _pair_notes(summary: Summary) -> list[str]:
    planned = len(summary.plan.seeds)
    seeds = ", ".join
    return [
        f"{each.arm} over {each.over}: "
        + (each.why_not or f"paired over the {len(each.seeds)} of {planned} seeds that both have")
        + (f" (seeds {seeds(map(str, each.seeds))})." if 0 < len(each.seeds) < planned else ".")
        for each in summary.contrasts
        if each.why_not or len(each.seeds) < planned
    ]


def _budget_notes(summary: Summary) -> list[str]:
    """Arms and pairs of arms that did not spend the same within the tolerance, or of which that is unknown."""
    told, measured = [], [arm for arm in summary.plan.arms if any(cell.value is not None for cell in summary.of(arm))]
    whole = "the budget" if summary.plan.total else f"what {summary.plan.baseline} spent on average"
    even = [arm for arm in measured if summary.is_equal(arm)]
    pairs = [(each.over, each.arm) for each in summary.contrasts if {each.over, each.arm} <= {*even}]
    for arms in [*((arm,) for arm in measured), *pairs]:
        name, equal = " and ".join(arms), summary.is_equal(*arms)
        if equal is None:
            told.append(f"{name}: it is not known how much of {whole} it spent, in {summary.measure}.")
        elif not equal:
            shares, most = [share for arm in arms for share in summary.shares(arm)], 100 * summary.plan.tolerance
            told.append(
                f"{name}: unequal budget, runs spent {100 * min(shares):.1f} to {100 * max(shares):.1f} % of {whole}, "
                f"and {most:g} % off it or apart was allowed."
            )
    return told
