"""How many dots? Separate red and blue dots; the thought counts each color."""

import math
from collections.abc import Callable

import numpy as np
from PIL import ImageDraw

from lightning_mmrl.data.synthetic.pictures import SIZE_PX, coverage, paint, save_png
from lightning_mmrl.data.synthetic.task import Medium, Plan, Problem, Task

LABELS = ("1", "2", "3", "4", "5", "6")
QUESTION = "<image>How many dots?"

_NOISE = 6.0
_RADIUS_PX = (3.5, 5.0)
_GAP_PX = 2.5


def compose(plan: Plan) -> Problem:
    """Draw as many dots as the label says, each of either color."""
    rng = plan.generator()
    total = int(plan.label)
    red = int(rng.integers(total + 1))
    dots = place_dots(total, rng)
    background = rng.uniform(10.0, 60.0, size=3)
    reddish = rng.uniform([200.0, 40.0, 40.0], [250.0, 80.0, 80.0])
    bluish = rng.uniform([40.0, 80.0, 200.0], [80.0, 120.0, 250.0])
    covered = coverage(_disks(dots[:red]))[..., None]
    ground = background + covered * (reddish - background)
    return Problem(
        question=QUESTION,
        thought=f"{red} red and {total - red} blue",
        facts={"red": red, "blue": total - red},
        signal=paint(coverage(_disks(dots[red:])), ground, bluish, _NOISE, rng),
    )


def place_dots(number: int, rng: np.random.Generator) -> np.ndarray:
    """Return (x, y, radius) of dots in pixels, (number, 3), apart from each other and from the edge."""
    dots: list[tuple[float, float, float]] = []
    while len(dots) < number:
        radius = rng.uniform(*_RADIUS_PX)
        x, y = rng.uniform(radius + 1.0, SIZE_PX - radius - 1.0, size=2)
        if all(math.hypot(x - a, y - b) > radius + r + _GAP_PX for a, b, r in dots):
            dots.append((x, y, radius))
    return np.array(dots)


def _disks(dots: np.ndarray) -> Callable[[ImageDraw.ImageDraw, int], None]:
    def draw(canvas: ImageDraw.ImageDraw, unit: int) -> None:
        for x, y, radius in dots.tolist():
            box = [(x - radius) * unit, (y - radius) * unit, (x + radius) * unit, (y + radius) * unit]
            canvas.ellipse(box, fill=255)

    return draw


COUNTING = Task(
    name="counting",
    labels=LABELS,
    compose=compose,
    medium=Medium(column="images", suffix=".png", save=save_png),
)
"""Dots as PNG files; the label is their number."""
