"""Sentences on a comparison: runs that failed or are missing, doubtful values, pairs and budgets that are not equal."""

from collections import Counter

from lightning_mmrl.report.arms import FAILED, NOT_BEGUN, NOT_ENDED, Summary
from lightning_mmrl.report.comparison import RUNS

MOST_NAMED = 4
"""Runs with the same doubt that are named; more of them are counted."""


def notes_of(summary: Summary) -> list[str]:
    """All sentences; none if nothing failed, is missing, doubtful or unequal."""
    parts = (_run_notes, _left_out_notes, _doubt_notes, _best_notes, _size_notes, _pair_notes, _budget_notes)
    return [note for part in parts for note in part(summary)]


def _run_notes(summary: Summary) -> list[str]:
    """Names the runs without a value. Runs that are still to come or still running are only counted."""
    coming = Counter(cell.problem for cell in summary.cells if cell.problem in (NOT_BEGUN, NOT_ENDED))
    told = [f"{cell.title}: {cell.problem}." for cell in summary.cells if cell.problem and cell.problem not in coming]
    if any(cell.problem and cell.problem.startswith(FAILED) for cell in summary.cells):
        told.append("Runs that failed are left out; if bad training made them fail, their arm looks better than it is.")
    coming_runs = [
        f"{number} of {len(summary.cells)} runs {problem if number == 1 else problem.replace('has', 'have', 1)}."
        for problem, number in coming.items()
    ]
    return [*told, *coming_runs]


def _left_out_notes(summary: Summary) -> list[str]:
    """Runs in the folder that the plan no longer has, such as seeds that somebody left out after a look at them."""
    plan, place = summary.plan, summary.plan.folder / RUNS
    planned = {found.resolve() for run in plan.runs if (found := plan.within(run.folder)) is not None}
    found = [each for each in place.iterdir() if each.is_dir() and not each.is_symlink()] if place.is_dir() else []
    names = sorted(each.name for each in found if each.resolve() not in planned)
    shown = f"{', '.join(names[:MOST_NAMED])}{' and others' if len(names) > MOST_NAMED else ''}"
    return [f"Runs in the folder that are no part of this comparison, {len(names)}: {shown}."] if names else []


def _doubt_notes(summary: Summary) -> list[str]:
    """Doubts about values, each with the runs that have it."""
    found: dict[str, list[str]] = {}
    for cell in summary.cells:
        for doubt in cell.doubts if cell.value is not None else ():
            found.setdefault(doubt, []).append(cell.title)
    number = len(summary.cells)
    return [
        f"{'; '.join(runs) if len(runs) <= MOST_NAMED else f'{len(runs)} of {number} runs'}: {doubt}."
        for doubt, runs in found.items()
    ]


def _best_notes(summary: Summary) -> list[str]:
    """Evaluations of the best validation that failed, or that the plan names and that have no figure."""
    told, planned = [], {(run.arm, run.seed, run.fold): run for run in summary.plan.runs}
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


def _size_notes(summary: Summary) -> list[str]:
    """Runs that were evaluated on other numbers of samples are not comparable."""
    sizes = Counter((cell.fold, cell.num_samples) for cell in summary.cells if cell.num_samples is not None)
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
