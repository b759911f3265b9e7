"""How many dots? Separate dots, none on the middle line; the thought counts each half."""

import math

import numpy as np
from PIL import ImageDraw

from lightning_mmrl.data.synthetic.pictures import SIZE_PX, coverage, draw_colors, paint, save_png
from lightning_mmrl.data.synthetic.task import Medium, Plan, Problem, Task

LABELS = ("1", "2", "3", "4", "5", "6")
QUESTION = "<image>How many dots?"

_NOISE = 6.0
_RADIUS_PX = (3.0, 5.0)
_GAP_PX = 2.5


def compose(plan: Plan) -> Problem:
    """Draw as many dots as the label says."""
    rng = plan.generator()
    dots = place_dots(int(plan.label), rng)
    left = int((dots[:, 0] < SIZE_PX / 2).sum())
    background, foreground = draw_colors(rng)

    def draw(canvas: ImageDraw.ImageDraw, unit: int) -> None:
        for x, y, radius in dots.tolist():
            box = [(x - radius) * unit, (y - radius) * unit, (x + radius) * unit, (y + radius) * unit]
            canvas.ellipse(box, fill=255)

    return Problem(
        question=QUESTION,
        thought=f"{left} left and {len(dots) - left} right",
        facts={"left": left, "right": len(dots) - left},
        signal=paint(coverage(draw), background, foreground, _NOISE, rng),
    )


def place_dots(number: int, rng: np.random.Generator) -> np.ndarray:
    """Return (x, y, radius) of dots in pixels, (number, 3): apart from each other, the edge and the middle line."""
    dots: list[tuple[float, float, float]] = []
    while len(dots) < number:
        radius = rng.uniform(*_RADIUS_PX)
        x, y = rng.uniform(radius + 1.0, SIZE_PX - radius - 1.0, size=2)
        clear = all(math.hypot(x - a, y - b) > radius + r + _GAP_PX for a, b, r in dots)
        if clear and abs(x - SIZE_PX / 2) > radius + 1.0:
            dots.append((x, y, radius))
    return np.array(dots)


COUNTING = Task(
    name="counting",
    labels=LABELS,
    compose=compose,
    medium=Medium(column="images", suffix=".png", save=save_png),
)
"""Dots as PNG files; the label is their number."""
