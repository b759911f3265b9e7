"""Draws a comparison: a row for each arm, with its seeds and mean at the left, and its difference at the right."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from lightning_mmrl.report.arms import Summary, mean_of
from lightning_mmrl.report.document import asset
from lightning_mmrl.report.markup import Html, escaped, tag

STYLES = ("colors.css", "arms.css")
WIDTH, ROW, TOP, NAMES = 800, 46, 58, 190
"""Width of the picture, height of a row, the place of the first one, and the width of the names; in pixels."""
LEFT, RIGHT = (NAMES + 10, 500), (530, 785)
"""Where the two panels begin and end."""
SEEDS, MEAN = -7, 9
"""Distance of points of seeds and of the mean from the middle of their row."""
MOST_LETTERS = 26
TICKS = 8
_NO_XML = re.compile("[\ufffe\uffff]")
"""Characters that no XML file may hold, and that `escaped` keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps values, in percent or points, to places of a panel; `ticks` are round values within."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], panel: tuple[float, float]) -> "Scale":
        """The scale of a panel that holds all values, with some room.

        >>> Scale.of([41.0, 58.0], (0, 100)).ticks
        (40.0, 45.0, 50.0, 55.0)
        """
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        room = 0.06 * (high - low) or 1.0
        low, high = low - room, high + room
        power = 10.0 ** math.floor(math.log10((high - low) / TICKS))
        step = next(each * power for each in (1, 2, 5, 10) if each * power * TICKS >= high - low)
        ticks = tuple(place * step for place in range(math.ceil(low / step), math.floor(high / step) + 1))
        return cls(low=low, high=high, start=panel[0], end=panel[1], ticks=ticks)

    def __call__(self, value: float) -> str:
        """The place of a value."""
        share = (value - self.low) / (self.high - self.low)
        return f"{self.start + share * (self.end - self.start):.1f}"


def figure_file(summary: Summary) -> str:
    """The picture as an SVG file, which brings its colors for light and dark and loads nothing."""
    style = Html(f"<style>{''.join(map(asset, STYLES))}</style>")
    back = tag("rect", width="100%", height="100%", class_="back")
    picture = _NO_XML.sub("?", _picture(summary, style, back))
    return f'<?xml version="1.0" encoding="utf-8"?>\n{picture}\n'


def figure(summary: Summary) -> Html:
    """The picture within a page that has the styles `STYLES`."""
    return tag("div", _picture(summary), class_="scroll", role="region", aria_label="Figure", tabindex="0")


def figure_caption(summary: Summary) -> str:
    """Explains the picture."""
    joined_by = "Grey lines join points of one seed. " if len(summary.plan.arms) > 1 else ""
    right = (
        f" Right: the mean difference to {summary.plan.baseline} in the same seed; the thick line is its 95 % interval"
        + (", the thin one holds for all comparisons of the table together." if len(summary.contrasts) > 1 else ".")
        if any(each.over == summary.plan.baseline for each in summary.contrasts)
        else ""
    )
    return (
        f"Left: each point is a seed{'' if summary.plan.folds == (None,) else ', its mean over folds'}. {joined_by}The "
        f"diamond below is the mean, with its 95 % interval over seeds.{right}"
    )


def _picture(summary: Summary, *first: Html) -> Html:
    arms = list(dict.fromkeys(cell.arm for cell in summary.cells))
    rows = {arm: TOP + ROW * place for place, arm in enumerate(arms)}
    height = TOP + ROW * len(arms) + 26
    shapes = [*_names(arms, rows), *_values(summary, rows, height), *_differences(summary, rows, height)]
    title = f"{summary.metric or 'Headline'} on {summary.plan.set_name} by arm: {summary.plan.question}"
    size = {"viewBox": f"0 0 {WIDTH} {height}", "width": WIDTH, "height": height}
    return tag(
        "svg",
        tag("title", title, id="arms-title"),
        tag("desc", _told(summary, arms), id="arms-text"),
        *first,
        *shapes,
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_labelledby="arms-title arms-text",
        class_="arms",
        **size,
    )


def _told(summary: Summary, arms: Sequence[str]) -> str:
    """The same as a text."""
    values = summary.by_seed()
    told = []
    for arm in arms:
        found, seeds = mean_of(values[arm]), ", ".join(f"{100 * each:.1f}" for each in values[arm].values())
        mean = f"mean {100 * fmean(values[arm].values()):.1f} %" if values[arm] else "no result"
        ends = "" if found is None else f", 95 % interval {100 * found.low:.1f} to {100 * found.high:.1f}"
        told.append(f"{arm}: {mean}{ends}{f', seeds {seeds}' if seeds else ''}.")
    for each in summary.contrasts:
        if each.mean is not None:
            found = each.found
            ends = (
                "no interval" if found is None else f"95 % interval {100 * found.low:+.1f} to {100 * found.high:+.1f}"
            )
            told.append(f"{each.arm} minus {each.over}: {100 * each.mean:+.1f} points, {ends}.")
    return " ".join(told)


def _names(arms: Sequence[str], rows: dict[str, int]) -> list[Html]:
    return [tag("text", _short(arm), x=NAMES - 6, y=rows[arm] + 5, class_="end") for arm in arms]


def _values(summary: Summary, rows: dict[str, int], height: int) -> list[Html]:
    values = {arm: {seed: 100 * each for seed, each in summary.by_seed()[arm].items()} for arm in rows}
    means = {arm: mean_of(each) for arm, each in values.items()}
    ends = [end for each in means.values() if each is not None for end in (each.low, each.high)]
    scale = Scale.of([*(value for each in values.values() for value in each.values()), *ends], LEFT)
    shapes = _axis(scale, f"{summary.metric or 'headline'} on {summary.plan.set_name}, in %", height)
    names = list(rows)
    for above, below in pairwise(names):
        for seed in values[above].keys() & values[below].keys():
            start, end = scale(values[above][seed]), scale(values[below][seed])
            place = {"x1": start, "y1": rows[above] + SEEDS, "x2": end, "y2": rows[below] + SEEDS}
            shapes.append(tag("line", **place, class_="pair"))
    for arm, y in rows.items():
        for seed, value in values[arm].items():
            told = tag("title", f"{arm}, seed {seed}: {value:.1f} %")
            shapes.append(tag("circle", told, cx=scale(value), cy=y + SEEDS, r=4, class_="seed"))
        if values[arm]:
            found = means[arm]
            line = [] if found is None else [_line(scale, found.low, found.high, y + MEAN, "ends")]
            shapes += [*line, _diamond(scale(fmean(values[arm].values())), y + MEAN)]
    return shapes


def _differences(summary: Summary, rows: dict[str, int], height: int) -> list[Html]:
    baseline = summary.plan.baseline
    shown = [each for each in summary.contrasts if each.over == baseline and each.mean is not None]
    if not shown:
        return []
    several = len(summary.contrasts) > 1
    ends = [end for each in shown if each.found for end in (each.found.low, each.found.high)]
    ends += [end for each in shown if each.together and several for end in each.together]
    means = [each.mean for each in shown if each.mean is not None]
    scale = Scale.of([100 * value for value in (0.0, *means, *ends)], RIGHT)
    shapes = _axis(scale, f"minus {_short(baseline)}, in points", height)
    shapes.append(tag("line", x1=scale(0), x2=scale(0), y1=TOP - 26, y2=height - 24, class_="zero"))
    for each in shown:
        y = rows[each.arm]
        if each.together and several:
            shapes.append(_line(scale, 100 * each.together[0], 100 * each.together[1], y, "together"))
        if each.found:
            shapes.append(_line(scale, 100 * each.found.low, 100 * each.found.high, y, "ends"))
        if each.mean is not None:
            shapes.append(_diamond(scale(100 * each.mean), y))
    return shapes


def _axis(scale: Scale, title: str, height: int) -> list[Html]:
    shapes = [tag("text", title, x=f"{(scale.start + scale.end) / 2:.0f}", y=20, class_="middle")]
    for tick in scale.ticks:
        x = scale(tick)
        shapes.append(tag("line", x1=x, x2=x, y1=TOP - 26, y2=height - 24, class_="grid"))
        shapes.append(tag("text", f"{tick:g}", x=x, y=height - 8, class_="small middle"))
    return shapes


def _line(scale: Scale, low: float, high: float, y: int, kind: str) -> Html:
    return tag("line", x1=scale(low), x2=scale(high), y1=y, y2=y, class_=kind)


def _diamond(x: str, y: int) -> Html:
    return tag("path", d=f"M{x} {y - 6}l6 6l-6 6l-6 -6Z", class_="mean")


def _short(text: str) -> Html:
    return escaped(text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 3]}...")
