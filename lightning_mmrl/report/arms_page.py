"""The outputs of a comparison: results as JSON, tables as Markdown, a figure, and one page that holds everything."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from lightning_mmrl.files import write_whole
from lightning_mmrl.report.arms import Cell, Summary
from lightning_mmrl.report.arms_figure import STYLES, figure, figure_caption, figure_file
from lightning_mmrl.report.arms_read import summarize
from lightning_mmrl.report.arms_tables import (
    EXPLORATORY,
    INCOMPLETE,
    UNEQUAL,
    Grid,
    budget_grid,
    costs_grid,
    main_grids,
    markdown,
    other_grids,
    verdict,
)
from lightning_mmrl.report.document import PLAIN_STYLES, document
from lightning_mmrl.report.markup import Html, folded, joined, table, tag
from lightning_mmrl.report.page import FILE as PAGE

RESULTS, TABLE, FIGURE = "results.json", "table.md", "figure.svg"
SIGNS = {"more": "more", "less": "less", "not clear": "not", "no interval": "not", UNEQUAL: "less"}
"""Cells that have a color, and its class."""


def write_comparison(folder: Path) -> Summary:
    """Reads a comparison, writes its outputs to its folder, and returns it; each file is replaced as a whole.

    The same files of runs give the same bytes.

    Raises:
        DataError: The folder is none of a comparison, or its plan is damaged.
        DiskError: An output cannot be written.
    """
    summary = summarize(folder)
    contents = {
        RESULTS: json.dumps(summary.plain(), indent=2, allow_nan=False) + "\n",
        TABLE: markdown(summary),
        FIGURE: figure_file(summary),
        PAGE: comparison_page(summary),
    }
    for name, content in contents.items():
        write_whole(folder / name, content)
    return summary


def comparison_page(summary: Summary) -> str:
    """The HTML of the page."""
    plan = summary.plan
    sections: list[tuple[str, str, Html | None]] = [
        ("missing", "Notes", _listed(summary.notes) if summary.notes else None),
        ("result", "Result", joined(_grid(each) for each in main_grids(summary))),
        ("figure", "Figure", tag("figure", figure(summary), tag("figcaption", figure_caption(summary)))),
        ("more", "Values of each seed", joined(_grid(each) for each in other_grids(summary))),
        ("arms", "Arms", _arms(summary)),
        ("budget", "Budget and costs", joined(_grid(each) for each in (budget_grid(summary), costs_grid(summary)))),
        ("runs", "Runs", _runs(summary)),
        ("limits", "Limits", _listed(limits(summary))),
    ]
    shown = [(key, title, content) for key, title, content in sections if content is not None]
    marks = [EXPLORATORY] * plan.exploratory + [INCOMPLETE] * (not summary.is_complete)
    facts = {
        "Question": plan.question or "not given",
        "Found": verdict(summary) or "one arm, and nothing to compare it with",
        "Measured": f"{summary.metric or 'the headline'} on {plan.set_name}",
        "Baseline": plan.baseline,
        "Seeds": ", ".join(map(str, plan.seeds)),
        "Folds": ", ".join(map(str, plan.folds)) if plan.folds != (None,) else "none",
        "Command": tag("code", shlex.join(plan.command)) if plan.command else "not recorded",
    }
    head = tag("dl", *(tag("div", tag("dt", key), tag("dd", value)) for key, value in facts.items()), class_="facts")
    parts = (tag("section", tag("h2", title), content, id=key, class_="part") for key, title, content in shown)
    body = joined(
        [
            tag("header", tag("h1", plan.name), *(tag("p", tag("strong", mark)) for mark in marks), head),
            tag("nav", *(tag("a", title, href=f"#{key}") for key, title, _ in shown), aria_label="Sections"),
            tag("main", *parts),
        ]
    )
    return document(plan.name, body, styles=(*PLAIN_STYLES, STYLES[-1]))


def limits(summary: Summary) -> list[str]:
    """What the result does not say, in sentences."""
    plan = summary.plan
    corrected = (
        " The correction for several comparisons assumes the same, and covers one table and no other metric or set."
        if len(summary.contrasts) > 1
        else ""
    )
    return [
        *([EXPLORATORY] if plan.exploratory else []),
        "All intervals are over seeds alone. They do not say how the arms would do on other test samples, speakers or "
        "data sets, or with another model; the runs' own pages have intervals over test samples.",
        f"The result is of one data set and of one metric, {summary.metric or 'the headline'} on {plan.set_name}.",
        "Student's t takes seeds as independent and differences as normal; so few seeds cannot show whether they are."
        + corrected,
        "A difference that is not clear is no proof of equality; the table says from which size on one would be found.",
        "The budget counts what the stages of a run spend, evaluations and the search for settings apart. An arm whose "
        "settings were searched with more effort has an advantage that no table here shows.",
    ]


def _listed(texts: Iterable[str]) -> Html:
    return tag("ul", *(tag("li", text) for text in texts))


def _grid(grid: Grid) -> Html:
    rows = [[row[0], *map(_cell, row[1:])] for row in grid.rows]
    told = tag("div", _listed(grid.caption), class_="note") if grid.caption else ""
    return joined([tag("h3", grid.title), table(grid.head, rows, label=grid.title, texts=grid.texts), told])


def _cell(text: str) -> str:
    return tag("span", text, class_=f"sign {SIGNS[text]}") if text in SIGNS else text


def _arms(summary: Summary) -> Html:
    rows = [
        [
            name,
            " ".join(arm.order),
            ", ".join(f"{stage} {100 * share:g} %" for stage, share in arm.shares.items()) or "-",
            ", ".join(arm.apart) or "-",
            joined((tag("code", each) for each in arm.overrides), " ") or "-",
        ]
        for name, arm in summary.plan.arms.items()
    ]
    head = ("arm", "stages in order", "shares of the budget", "stages that do not count", "overrides")
    return table(head, rows, label="Arms", texts=len(head))


def _runs(summary: Summary) -> Html:
    shared = {(run.arm, run.seed, run.fold): ", ".join(run.shared) for run in summary.plan.runs}
    rows = [
        [
            cell.title,
            _link(summary, cell),
            f"{100 * cell.value:.1f} %" if cell.value is not None else cell.problem,
            shared.get((cell.arm, cell.seed, cell.fold)) or "-",
        ]
        for cell in summary.cells
    ]
    head = ("run", "page", summary.metric or "headline", "stages taken over")
    return folded("All runs, with their pages", table(head, rows, label="Runs", texts=len(head)))


def _link(summary: Summary, cell: Cell) -> Html:
    """A link to the page of a run, relative to this page, if there is one."""
    place = None if cell.folder is None else summary.plan.within(f"{cell.folder}/{PAGE}")
    if cell.folder is None or place is None or not place.is_file():
        return Html("-")
    return tag("a", cell.folder, href=f"./{quote(f'{cell.folder}/{PAGE}')}")
