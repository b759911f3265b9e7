"""Reads the runs of a comparison, each with what it reached and cost, or with the reason for which it has no value."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lightning_mmrl.errors import MmrlError
from lightning_mmrl.evaluation.arms import compare_arms
from lightning_mmrl.report.arms import AT, FAILED, NOT_BEGUN, NOT_ENDED, Cell, StageSpent, Summary
from lightning_mmrl.report.arms_notes import notes_of
from lightning_mmrl.report.comparison import Arm, Plan, PlannedRun, read_plan
from lightning_mmrl.report.doubts import evaluation_doubts, stage_doubts
from lightning_mmrl.report.page import FAULTS
from lightning_mmrl.report.run_files import SUMMARY, Evaluated, RunFiles, StageFiles, read_run, results_in
from lightning_mmrl.settings.budget import MEASURES
from lightning_mmrl.settings.stage import BASE


def summarize(folder: Path, other: tuple[str, str] | None = None) -> Summary:
    """Reads a comparison, which may still be running.

    Args:
        folder: The folder of the comparison.
        other: Another set and metric than the comparison states; its result is exploratory.

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
    metric = plan.metric or _headline(found)
    cells = [_measured(each, plan, metric) for each in found]
    summary = Summary(plan=plan, metric=metric, cells=tuple(cells), contrasts=(), best_contrasts=(), notes=())
    values, best = summary.by_seed(), summary.by_seed("best")
    compared = compare_arms(values, plan.baseline, all_pairs=plan.all_pairs)
    at_best = compare_arms(best, plan.baseline, all_pairs=plan.all_pairs) if any(best.values()) else ()
    summary = replace(summary, contrasts=compared, best_contrasts=at_best)
    return replace(summary, notes=tuple(notes_of(summary)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    cell: Cell
    results: Mapping[str, Evaluated]


def _headline(found: Sequence[_Read]) -> str | None:
    """The headline of most runs, the first one in case of a tie; None if no run has a value."""
    headlines = Counter(each.results["value"].headline for each in found if "value" in each.results)
    return next(iter(headlines.most_common(1)), (None, 0))[0]


def _read(plan: Plan, cell: Cell, run: PlannedRun | None) -> _Read:
    """The results of a run on the set of the comparison, by where it was measured; none, with the reason."""
    if run is None:
        return _Read(cell=replace(cell, problem=NOT_BEGUN), results={})
    place = plan.within(run.folder)
    if place is None:
        return _Read(cell=replace(cell, problem="its folder leads out of the comparison's"), results={})
    if run.exit_code is None and not place.exists():
        return _Read(cell=replace(cell, problem=NOT_BEGUN), results={})
    cell = replace(cell, folder=run.folder)
    arm = plan.arms[cell.arm]
    try:
        files = read_run(place)
        stages = tuple(_spent(stage, stage.name not in arm.apart) for stage in files.stages if stage.result)
        cell = replace(cell, stages=stages, problem=_ended(run) or _unfinished(files, arm))
        if cell.problem:
            return _Read(cell=cell, results={})
        return _with_results(cell, plan, run, files)
    except MmrlError as error:
        return _Read(cell=replace(cell, problem=_ended(run) or f"cannot be read: {error}"), results={})
    except FAULTS as error:
        told = f"is damaged ({type(error).__name__}: {error})"
        return _Read(cell=replace(cell, problem=_ended(run) or told), results={})


def _ended(run: PlannedRun) -> str | None:
    if run.exit_code is None:
        return NOT_ENDED
    return f"{FAILED} {run.exit_code}" if run.exit_code else None


def _unfinished(files: RunFiles, arm: Arm) -> str | None:
    """The reason for which a run that ended is not whole."""
    if not files.is_known:
        return f"cannot be read: {files.missing[0].rstrip('.')}"
    stages = {stage.name: stage for stage in files.stages}
    lacking = [name for name in arm.order if name not in stages or stages[name].result is None]
    if lacking:
        return f"is damaged: its manifest has no finished {', '.join(lacking)}"
    lost = [name for name in arm.trained if not stages[name].trains]
    if lost:
        return f"is damaged: its manifest has no weights of {', '.join(lost)}"
    return None if any(stages[name].trains for name in arm.order) else "has no stage that trains"


def _with_results(cell: Cell, plan: Plan, run: PlannedRun, files: RunFiles) -> _Read:
    """A run with its results, the size of its evaluation and the doubts about it, or with the damage that cost it."""
    arm = plan.arms[run.arm]
    ran = [stage for stage in files.stages if stage.name in arm.order]
    trained = [stage for stage in ran if stage.trains]
    last, first = trained[-1].name, next((stage for stage in trained if stage.name not in arm.apart), None)
    at = {"value": last, "base": _start(first, trained)}
    known = {each.stage: each for each in files.evaluated if each.name == plan.set_name}
    results = {key: known[stage] for key, stage in at.items() if stage in known}
    if run.best is not None and plan.within(f"{run.best}/{SUMMARY}") is not None:
        best = results_in(plan.folder / run.best, last, files.missing)
        results.update(("best", each) for each in best if each.name == plan.set_name)
    if "value" in results:
        doubts = [f"{stage.name}: {doubt}" for stage in ran for doubt in stage_doubts(stage)]
        doubts += evaluation_doubts(results["value"])
        cell = replace(cell, num_samples=results["value"].num_samples, doubts=tuple(doubts))
    elif damage := files.damaged.get((last, plan.set_name)) or files.damaged.get((last, None)):
        cell = replace(cell, problem=f"cannot be read: {damage.rstrip('.')}")
    return _Read(cell=cell, results=results)


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
