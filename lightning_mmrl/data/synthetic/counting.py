"""A counting task: its pictures show red and blue dots in the cells of a grid, and its thoughts count each color."""

from functools import partial

import numpy as np
from PIL import ImageDraw

from lightning_mmrl.data.synthetic.pictures import SIZE_PX, TILE_PX, coverage, disk, paint, save_png
from lightning_mmrl.data.synthetic.task import Medium, Plan, Problem, Task

LABELS = ("1", "2", "3", "4")
QUESTION = "<image>How many dots?"

_NOISE = 6.0
_RADIUS_PX = (8.0, 11.0)
_JITTER_PX = 2.0


def compose(plan: Plan) -> Problem:
    """Draw the number of dots that is the label; each dot is red or blue."""
    rng = plan.generator()
    total = int(plan.label)
    red = int(rng.integers(total + 1))
    per_side = SIZE_PX // TILE_PX
    cells = rng.choice(per_side**2, size=total, replace=False)
    return Problem(
        question=QUESTION,
        thought=f"{red} red and {total - red} blue",
        facts={"red": red, "blue": total - red},
        signal=draw_dots(cells, red, per_side, rng),
    )


def draw_dots(cells: np.ndarray, red: int, per_side: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a dot in each of the cells, which are numbered row by row; the first `red` dots are red, the others blue."""
    size_px = per_side * TILE_PX
    middles = (np.column_stack([cells % per_side, cells // per_side]) + 0.5) * TILE_PX
    jitter = rng.uniform(-_JITTER_PX, _JITTER_PX, size=(len(cells), 2))
    # (x, y, radius) of each dot in pixels
    dots = np.column_stack([middles + jitter, rng.uniform(*_RADIUS_PX, size=len(cells))])
    background = rng.uniform(10.0, 40.0, size=3)
    reddish = rng.uniform([200.0, 40.0, 40.0], [250.0, 80.0, 80.0])
    bluish = rng.uniform([40.0, 80.0, 200.0], [80.0, 120.0, 250.0])
    ground = background + coverage(partial(_draw, dots[:red]), size_px)[..., None] * (reddish - background)
    return paint(coverage(partial(_draw, dots[red:]), size_px), ground, bluish, _NOISE, rng)


def _draw(dots: np.ndarray, canvas: ImageDraw.ImageDraw, unit: int) -> None:
    for x, y, radius in dots.tolist():
        disk(canvas, unit, x=x, y=y, radius=radius)


COUNTING = Task(
    name="counting",
    labels=LABELS,
    compose=compose,
    medium=Medium(column="images", suffix=".png", save=save_png),
)
"""Dots as PNG files; the label is their number."""
