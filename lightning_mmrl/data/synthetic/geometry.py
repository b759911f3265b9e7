"""A task about shapes: one filled shape on a plain background, slightly off center and slightly rotated."""

import math

import numpy as np
from PIL import ImageDraw

from lightning_mmrl.data.synthetic.pictures import SIZE_PX, coverage, disk, draw_colors, paint, save_png
from lightning_mmrl.data.synthetic.task import Medium, Plan, Problem, Task

THOUGHTS = {
    "circle": "no corners",
    "ring": "a hole",
    "triangle": "three corners",
    "square": "four corners",
    "star": "five points",
    "cross": "four arms",
}
QUESTION = "<image>Which shape?"

_NOISE = 6.0
_RADIUS_PX = (15.0, 22.0)
_OFF_CENTER_PX = 4.0
_LARGEST_TURN_DEGREES = 20.0
_CROSS_WIDTH = 0.3
_RING_HOLE = 0.5
_STAR_WAIST = 0.45
_UPRIGHT = {"triangle": -math.pi / 2, "square": math.pi / 4, "star": -math.pi / 2, "cross": 0.0}
"""Angle of the first corner of each upright shape, in radians."""


def compose(plan: Plan) -> Problem:
    """Draw the shape that the label names."""
    rng = plan.generator()
    radius = rng.uniform(*_RADIUS_PX)
    x, y = SIZE_PX / 2 + rng.uniform(-_OFF_CENTER_PX, _OFF_CENTER_PX, size=2)
    turn = math.radians(rng.uniform(-_LARGEST_TURN_DEGREES, _LARGEST_TURN_DEGREES))
    background, foreground = draw_colors(rng)

    def draw(canvas: ImageDraw.ImageDraw, unit: int) -> None:
        if plan.label in ("circle", "ring"):
            hole = radius * _RING_HOLE if plan.label == "ring" else 0.0
            disk(canvas, unit, x=x, y=y, radius=radius)
            disk(canvas, unit, x=x, y=y, radius=hole, fill=255 if plan.label == "circle" else 0)
        else:
            corners = (outline(plan.label, turn) * radius + (x, y)) * unit
            canvas.polygon([tuple(corner) for corner in corners.tolist()], fill=255)

    return Problem(
        question=QUESTION,
        thought=THOUGHTS[plan.label],
        facts={"radius_px": round(radius, 2), "turn_degrees": round(math.degrees(turn), 1)},
        signal=paint(coverage(draw), background, foreground, _NOISE, rng),
    )


def outline(shape: str, turn: float) -> np.ndarray:
    """Return the corners (x, y) of a shape with straight sides, (corners, 2).

    `turn` rotates the upright shape, in radians. The shape touches the unit circle; y points down.

    >>> outline("triangle", 0.0).round(2).tolist()
    [[0.0, -1.0], [0.87, 0.5], [-0.87, 0.5]]
    """
    turn += _UPRIGHT[shape]
    if shape == "star":
        angles, radii = np.arange(10) * math.pi / 5, np.array([1.0, _STAR_WAIST] * 5)
    elif shape == "cross":
        arm = math.asin(_CROSS_WIDTH)
        quarter = np.array([-arm, arm, math.pi / 4])
        angles = (np.arange(4)[:, None] * math.pi / 2 + quarter).ravel()
        radii = np.array([1.0, 1.0, _CROSS_WIDTH * math.sqrt(2.0)] * 4)
    else:
        number = {"triangle": 3, "square": 4}[shape]
        angles, radii = np.arange(number) * 2 * math.pi / number, np.ones(number)
    return np.column_stack([np.cos(angles + turn), np.sin(angles + turn)]) * radii[:, None]


GEOMETRY = Task(
    name="geometry",
    labels=tuple(THOUGHTS),
    compose=compose,
    medium=Medium(column="images", suffix=".png", save=save_png),
)
"""Shapes as PNG files; the label is the shape's name."""
