"""The tables of a comparison in words, which the console, a Markdown file and the page share."""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from lightning_mmrl.evaluation.arms import LEVEL, POWER, Contrast
from lightning_mmrl.report.arms import Cell, Summary, mean_of
from lightning_mmrl.report.markup import duration, number, visible

EQUAL, UNEQUAL = "equal", "UNEQUAL"
_UNITS = {
    "flops": "operations of training and sampling over logical tokens",
    "steps": "optimizer steps (of RL: iterations)",
    "seconds": "seconds of training, sampling and scoring",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table of texts: the first `texts` columns are names, the others numbers. `caption` explains it, if given."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1
    caption: tuple[str, ...] = ()


def main_grids(summary: Summary) -> list[Grid]:
    """Differences between arms and the figures of arms, which the console shows."""
    found = [arms_grid(summary)]
    if summary.contrasts:
        title = f"{_over(summary)} in {_metric(summary)}, in points"
        found.insert(0, _differences(summary, summary.contrasts, title, caption(summary)))
    return found


def all_grids(summary: Summary) -> list[Grid]:
    """All tables of results."""
    return [*main_grids(summary), *other_grids(summary), budget_grid(summary), costs_grid(summary)]


def other_grids(summary: Summary) -> list[Grid]:
    """The values of each seed, and the differences at the best validation if it was evaluated."""
    if not summary.best_contrasts:
        return seed_grids(summary)
    title = f"{_over(summary)} in {_metric(summary)} at the best validation, in points"
    return [
        *seed_grids(summary),
        _differences(summary, summary.best_contrasts, title, (_best_caption(summary),)),
    ]


VERDICTS = {
    "more": "clearly more",
    "less": "clearly less",
    "not clear": "no clear difference",
    "no interval": "no test possible",
}
"""In words the values of `clear`, in the order in which a verdict has them."""


def verdict(summary: Summary) -> str:
    """The table of differences in one sentence; empty if nothing is compared."""
    if not summary.contrasts:
        return ""
    arms: dict[str, list[str]] = {}
    for each in summary.contrasts:
        name = f"{each.arm} over {each.over}" if summary.plan.all_pairs else each.arm
        told = [] if each.mean is None else [f"{100 * each.mean:+.1f}"]
        budget = _equal(summary, each.arm, each.over)
        told += [f"{budget} budget"] if budget != EQUAL else []
        arms.setdefault(clear(each), []).append(f"{name} ({', '.join(told)})" if told else name)
    found = "; ".join(f"{words}: {', '.join(arms[sign])}" for sign, words in VERDICTS.items() if sign in arms)
    against = "between arms" if summary.plan.all_pairs else f"against {summary.plan.baseline}"
    marks = [*(["exploratory"] if summary.plan.exploratory else []), *([] if summary.is_complete else ["so far"])]
    begin = f"{', '.join(marks)}: ".capitalize() if marks else ""
    return f"{begin}{_metric(summary)} {against}, in points: {found}."


def caption(summary: Summary) -> tuple[str, ...]:
    """Explains the table of differences: measure, unit, interval, correction, power and budget."""
    plan, number_of = summary.plan, len(summary.contrasts)
    folds = f", with its mean over {len(plan.folds)} folds as its value" if plan.folds != (None,) else ""
    others = "of the other arm" if plan.all_pairs else f"of {plan.baseline}"
    return (
        f"difference: {summary.metric or 'the headline'} on {plan.set_name} of the arm minus that {others} with the "
        "same seed, each after the arm's last trained stage with its last weights; the mean over the seeds that both "
        "have.",
        f"The unit is the seed{folds}. Intervals and p values are of Student's paired t test over seeds. They are "
        "exact if seeds are independent and their differences normal. They say how other seeds would do with the same "
        "data and the same test samples, and nothing about other data.",
        "p: the chance of a t at least this far from 0 if the true mean difference is 0.",
        *(_corrected(number_of) if number_of > 1 else ("There is one comparison, so nothing is corrected.",)),
        f"clear: 'more' or 'less' if {'the corrected ' if number_of > 1 else ''}p is below {1 - LEVEL:.2f}.",
        f"{100 * POWER:.0f} % power above: so many seeds, if their spread is as measured, find a true difference of "
        f"this size with at least {100 * POWER:.0f} % power; a smaller one may well be there and not be clear.",
        _budget(summary),
    )


def _corrected(number_of: int) -> tuple[str, ...]:
    return (
        f"corrected p: by Holm's procedure over the {number_of} comparisons of this table. The chance that the table "
        f"calls any difference clear that is not there is at most {100 * (1 - LEVEL):.0f} %.",
        f"all together: Bonferroni intervals, which hold all {number_of} true differences at once in at least "
        f"{100 * LEVEL:.0f} % of such tables. Holm's procedure can find a difference whose interval there has 0.",
    )


def _budget(summary: Summary) -> str:
    plan, unit = summary.plan, _UNITS[summary.measure]
    apart = sorted({stage for arm in plan.arms.values() for stage in arm.apart})
    counted = f"all stages but {', '.join(apart)}" if apart else "all stages"
    most = f"{100 * plan.tolerance:g} %"
    marked = f"{UNEQUAL} marks arms whose runs are more than {most} apart, or one of them more than {most} off"
    if plan.total is None:
        return f"Budget: none was set; {marked} the mean of {plan.baseline} in {unit}, counted over {counted}."
    return f"Budget: {number_in(plan.total)} {unit} for each run, counted over {counted}; {marked}."


def _best_caption(summary: Summary) -> str:
    return (
        "The same for the weights of the last trained stage that had the best validation. It is a check on the table "
        f"above, with a correction of its own over {len(summary.best_contrasts)} comparisons; both tables together "
        "have a larger chance of a false finding than each by itself."
    )


def _differences(summary: Summary, contrasts: Sequence[Contrast], title: str, words: tuple[str, ...]) -> Grid:
    several, pairs = len(contrasts) > 1, summary.plan.all_pairs
    more = (f"all together {100 * LEVEL:.0f} %", "p", "corrected p") if several else ("p",)
    over = ("over",) if pairs else ()
    head = ("arm", *over, "seeds", f"difference [{100 * LEVEL:.0f} %]", *more)
    head = (*head, "clear", f"{100 * POWER:.0f} % power above", "budget")
    rows = tuple(
        (
            each.arm,
            *((each.over,) if pairs else ()),
            str(len(each.seeds)),
            _with_ends(each.mean, None if each.found is None else (each.found.low, each.found.high), "+"),
            *([_ends(each.together, "+")] if several else []),
            p_value(None if each.found is None else each.found.p_value),
            *([p_value(each.corrected)] if several else []),
            clear(each),
            "-" if each.smallest is None else f"{100 * each.smallest:.1f}",
            _equal(summary, each.arm, each.over),
        )
        for each in contrasts
    )
    return Grid(title=title, head=head, rows=rows, texts=1 + len(over), caption=words)


def _over(summary: Summary) -> str:
    return "Differences between arms" if summary.plan.all_pairs else f"Differences to {summary.plan.baseline}"


def clear(contrast: Contrast) -> str:
    """Whether the corrected test finds a difference: `more`, `less`, `not clear`, or `no interval`."""
    if contrast.corrected is None or contrast.mean is None:
        return "no interval"
    if contrast.corrected >= 1 - LEVEL:
        return "not clear"
    return "more" if contrast.mean > 0 else "less"


def _equal(summary: Summary, *arms: str) -> str:
    if any(summary.is_equal(arm) is False for arm in arms):
        return UNEQUAL
    return {True: EQUAL, False: UNEQUAL, None: "unknown"}[summary.is_equal(*arms)]


def arms_grid(summary: Summary) -> Grid:
    """A row for each arm: before, after, at the best validation, and what it spent."""
    plan = summary.plan
    before, after, best = (summary.by_seed(at) for at in ("base", "value", "best"))
    whole = "the budget" if plan.total else f"{plan.baseline}'s mean"
    head = ("arm", "seeds", "before", "after [95 %]", "best validation [95 %]", f"spent, % of {whole}", "budget")
    rows = tuple(
        (
            arm,
            f"{len(after[arm])} of {len(plan.seeds)}",
            _percent(fmean(before[arm].values()) if before[arm] else None),
            _mean(after[arm]),
            _mean(best[arm]),
            _range(summary.shares(arm)),
            _equal(summary, arm),
        )
        for arm in _arms(summary)
    )
    words = (
        "Means over seeds with t intervals over seeds. Intervals of two arms may overlap where their difference is "
        "clear, since seeds are paired. One seed, or seeds that are all equal, have no interval.",
        "before: with the weights that the first counted stage started from, if they were evaluated.",
        "best validation: with the weights of the last trained stage that had the best validation, if they were kept "
        "and evaluated.",
        "spent: the lowest and the highest run.",
    )
    return Grid(title=f"{_metric(summary)} of each arm, in %", head=head, rows=rows, caption=words)


def seed_grids(summary: Summary) -> list[Grid]:
    """The values of each seed, and of each fold if there are some."""
    arms, by_seed = _arms(summary), summary.by_seed()
    mean = "" if summary.plan.folds == (None,) else ", mean over folds"
    rows = [(str(seed), *(_percent(by_seed[arm].get(seed)) for arm in arms)) for seed in summary.plan.seeds]
    found = [Grid(title=f"{_metric(summary)} by seed{mean}, in %", head=("seed", *arms), rows=tuple(rows))]
    if mean:
        cells = {(cell.arm, cell.seed, cell.fold): cell.value for cell in summary.cells}
        each = [
            (str(seed), str(fold), *(_percent(cells[arm, seed, fold]) for arm in arms))
            for seed in summary.plan.seeds
            for fold in summary.plan.folds
        ]
        title = f"{_metric(summary)} by seed and fold, in %"
        found.append(Grid(title=title, head=("seed", "fold", *arms), rows=tuple(each), texts=2))
    return found


def budget_grid(summary: Summary) -> Grid:
    """What each arm spent in its counted stages, in all three units."""
    rows = tuple(
        (
            arm,
            str(sum(cell.value is not None for cell in summary.of(arm))),
            *_costs([_spent(cell) for cell in _valued(summary, arm)]),
            _range(summary.shares(arm)),
            _equal(summary, arm),
        )
        for arm in _arms(summary)
    )
    plan = summary.plan
    whole = "the budget" if plan.total else f"{plan.baseline}'s mean"
    head = ("arm", "runs", "operations", "steps", "time", f"% of {whole}", "budget")
    words = (
        "Means over the runs of an arm that have a value, over the stages that count; the share is of the lowest and "
        f"of the highest run, in {_UNITS[summary.measure]}. Steps are those of trained stages (of RL: iterations).",
    )
    return Grid(title="Budget", head=head, rows=rows, caption=words)


def costs_grid(summary: Summary) -> Grid:
    """What each stage of each arm cost."""
    rows = []
    for arm in _arms(summary):
        stages = [stage for cell in _valued(summary, arm) for stage in cell.stages]
        for name, counts in dict.fromkeys((stage.stage, stage.counts) for stage in stages):
            each = [(stage.flops, stage.steps, stage.seconds) for stage in stages if stage.stage == name]
            rows.append((arm, name, "yes" if counts else "no", *_costs(each)))
    words = (
        "Means over the runs of an arm that have a value. A stage that several arms share was trained once for each "
        "seed, and counts in each of them as if it had been trained there.",
    )
    head = ("arm", "stage", "counts", "operations", "steps", "time")
    return Grid(title="Costs of each stage", head=head, rows=tuple(rows), texts=3, caption=words)


def _spent(cell: Cell) -> tuple[float | None, float | None, float | None]:
    return cell.spent("flops"), cell.spent("steps"), cell.spent("seconds")


def _costs(each: Sequence[tuple[float | None, float | None, float | None]]) -> tuple[str, str, str]:
    """Mean operations, steps and time in words; `-` where one is unknown."""
    means = [fmean(column) if column and None not in column else None for column in zip(*each, strict=True)]
    flops, steps, seconds = means or (None, None, None)
    return (
        "-" if flops is None else number_in(flops),
        "-" if steps is None else f"{steps:,.0f}" if steps == round(steps) else f"{steps:,.1f}",
        "-" if seconds is None else duration(seconds),
    )


def _valued(summary: Summary, arm: str) -> list[Cell]:
    return [cell for cell in summary.of(arm) if cell.value is not None]


def _arms(summary: Summary) -> list[str]:
    """All arms, the baseline first."""
    return list(dict.fromkeys(cell.arm for cell in summary.cells)) or list(summary.plan.arms)


def _metric(summary: Summary) -> str:
    return f"{summary.metric or 'the headline'} on {summary.plan.set_name}"


def number_in(value: float) -> str:
    """A count for humans: 1.0e+13 from a million on.

    >>> number_in(1e13), number_in(1500.0)
    ('1.00e+13', '1,500')
    """
    return f"{value:.2e}" if value >= 1e6 else number(int(value)) if value == int(value) else f"{value:,.1f}"


def p_value(value: float | None) -> str:
    """A p value with three digits.

    >>> p_value(0.0004), p_value(0.5), p_value(None)
    ('<0.001', '0.500', '-')
    """
    return "-" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _ends(ends: tuple[float, float] | None, sign: str = "") -> str:
    return "-" if ends is None else f"[{100 * ends[0]:{sign}.1f}, {100 * ends[1]:{sign}.1f}]"


def _with_ends(mean: float | None, ends: tuple[float, float] | None, sign: str = "") -> str:
    shown = "-" if mean is None else f"{100 * mean:{sign}.1f}"
    return shown if ends is None else f"{shown} {_ends(ends, sign)}"


def _mean(values: dict[int, float]) -> str:
    found = mean_of(values)
    mean = fmean(values.values()) if values else None
    return _with_ends(mean, None if found is None else (found.low, found.high))


def _range(shares: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{100 * each:.1f}" for each in (min(shares), max(shares)))) if shares else "-"


def markdown(summary: Summary) -> str:
    """The tables as Markdown; texts of others are escaped."""
    plan = summary.plan
    lines = [f"# {_plain(plan.name)}", "", _plain(plan.question), ""]
    if plan.exploratory:
        lines += [EXPLORATORY, ""]
    if not summary.is_complete:
        lines += [INCOMPLETE, ""]
    if told := verdict(summary):
        lines += [_plain(told), ""]
    for grid in all_grids(summary):
        lines += [f"## {_plain(grid.title)}", "", *_markdown(grid), ""]
        lines += [*(f"- {_plain(each)}" for each in grid.caption), ""] if grid.caption else []
    if summary.notes:
        lines += ["## Notes", "", *(f"- {_plain(note)}" for note in summary.notes), ""]
    return "\n".join(lines)


EXPLORATORY = "Exploratory: this comparison looks for questions, and its findings are to be tested with new seeds."
INCOMPLETE = (
    "Not complete: some planned runs have no value, see the notes. A comparison that is ended early because a "
    "difference is clear finds false ones more often than its table says."
)


def _markdown(grid: Grid) -> Iterable[str]:
    rules = ["---" if place < grid.texts else "---:" for place in range(len(grid.head))]
    for cells in (map(_plain, grid.head), rules, *(map(_plain, row) for row in grid.rows)):
        yield f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """A text on one line in which Markdown and HTML read no sign; an underscore within a word is none of Markdown's."""
    shown = html.escape(visible(" ".join(text.split())), quote=False)
    return _SIGNS.sub(r"\\\g<0>", shown)


_SIGNS = re.compile(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)")
