"""A task about bar charts with options in random order: which bar is the tallest, and how tall is one of them?

No chart is in a held-out split and in another split. The texts of the options are equally often right, for each kind
and each letter, so that the options of a question say nothing about the answer.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from PIL import ImageDraw

from lightning_mmrl.data.synthetic.choices import LETTERS, in_turn, lettered, listed, shuffled
from lightning_mmrl.data.synthetic.pictures import GRID_PX, PALETTE, Fill, render, save_png, tinted, with_noise
from lightning_mmrl.data.synthetic.task import Medium, Plan, Problem, Task, belongs

COLORS = tuple(PALETTE)
VALUES = ("one", "two", "three", "four", "five", "six")
TALLEST, VALUE = "tallest", "value"

_UNIT_PX = GRID_PX // len(VALUES)
_COLUMN_PX = GRID_PX // len(COLORS)
_GAP_PX = 3
_LINE = 70.0
_NOISE = 6.0


def compose(plan: Plan, *, letters: bool = True) -> Problem:
    """Draw a chart that its split may have, and ask about it."""
    rng = plan.generator()
    while True:
        order = [COLORS[place] for place in rng.permutation(len(COLORS))]
        compose_kind = _tallest if plan.question_type == TALLEST else _value
        heights, question, right, texts = compose_kind(plan, rng)
        name = " ".join([question, *(f"{color}-{heights[color]}" for color in order)])
        if belongs(name, plan.split):
            break
    wrong = [text for text in texts if text != right]
    options = shuffled(right, [wrong[place] for place in rng.permutation(len(wrong))[:3]], plan.label, rng)
    return Problem(
        question=f"<image>{(lettered if letters else listed)(question, options)}",
        thought=right,
        answer=plan.label if letters else right,
        facts={"options": options, "chart": name},
        signal=_draw_chart(order, heights, rng),
    )


def _tallest(plan: Plan, rng: np.random.Generator) -> tuple[dict[str, int], str, str, tuple[str, ...]]:
    """Return heights by color, of which one is the largest, the question, its answer, and the texts of the options."""
    right = in_turn(plan, COLORS)
    highest = int(rng.integers(2, len(VALUES) + 1))
    heights = {color: highest if color == right else int(rng.integers(1, highest)) for color in COLORS}
    return heights, "Which bar is the tallest?", right, COLORS


def _value(plan: Plan, rng: np.random.Generator) -> tuple[dict[str, int], str, str, tuple[str, ...]]:
    """Return heights by color, the question for one of them, its answer, and the texts of the options."""
    right = in_turn(plan, VALUES)
    asked = COLORS[rng.integers(len(COLORS))]
    heights = {color: int(rng.integers(1, len(VALUES) + 1)) for color in COLORS} | {asked: VALUES.index(right) + 1}
    return heights, f"How tall is the {asked} bar?", right, VALUES


def _draw_chart(order: list[str], heights: dict[str, int], rng: np.random.Generator) -> np.ndarray:
    """Draw bars in an order, on lines at every unit of height."""
    ground = np.tile(rng.uniform(10.0, 40.0, size=3), (GRID_PX, GRID_PX, 1))
    ground[_UNIT_PX - 1 :: _UNIT_PX] = _LINE
    bars = [(heights[color] * _UNIT_PX, tinted(color, rng)) for color in order]
    return with_noise(render(ground, partial(_draw_bars, bars)), _NOISE, rng)


def _draw_bars(bars: Sequence[tuple[int, Fill]], canvas: ImageDraw.ImageDraw, unit: int) -> None:
    for place, (height_px, fill) in enumerate(bars):
        left, right = place * _COLUMN_PX + _GAP_PX, (place + 1) * _COLUMN_PX - _GAP_PX
        canvas.rectangle([left * unit, (GRID_PX - height_px) * unit, right * unit - 1, GRID_PX * unit - 1], fill=fill)


BARS = Task(
    name="bars",
    labels=LETTERS,
    compose=compose,
    medium=Medium(column="images", suffix=".png", save=save_png),
    kinds={TALLEST: LETTERS, VALUE: LETTERS},
    sizes={"cold_start": 1920, "train": 1536, "validation": 384, "test": 384},
)
"""Charts as PNG files; the answer is the letter of the right option."""

BARS_TEXT = replace(BARS, name="bars_text", labels=(*COLORS, *VALUES), compose=partial(compose, letters=False))
"""The same without letters; the answer is the text of the right option."""
