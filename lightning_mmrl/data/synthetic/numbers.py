"""A task with two kinds of question and the same answers: sums of digits as text, and dots in pictures, 0 to 9.

A thought about dots is a sum of two digits ("3 + 4" for three red and four blue dots), like the last step of a thought
about a text. So a model that has learned sums from text has only to see.
"""

import numpy as np

from lightning_mmrl.data.synthetic import arithmetic
from lightning_mmrl.data.synthetic.counting import QUESTION, draw_dots
from lightning_mmrl.data.synthetic.pictures import save_png
from lightning_mmrl.data.synthetic.task import Medium, Plan, Problem, Task, belongs

TEXT, DOTS = "text", "dots"
PER_SIDE = 3


def compose(plan: Plan) -> Problem:
    """Pose a sum as text, or draw dots."""
    return arithmetic.compose(plan) if plan.question_type == TEXT else compose_dots(plan)


def compose_dots(plan: Plan) -> Problem:
    """Draw as many dots as the label says, in an arrangement that the split may have."""
    rng = plan.generator()
    total = int(plan.label)
    while True:
        red = int(rng.integers(total + 1))
        cells = rng.permutation(PER_SIDE**2)[:total]
        name = arrangement(cells, red)
        # There is only one picture without dots.
        if total == 0 or belongs(name, plan.split):
            break
    return Problem(
        question=QUESTION,
        thought=f"{red} + {total - red}",
        facts={"red": red, "blue": total - red, "arrangement": name},
        signal=draw_dots(cells, red, PER_SIDE, rng),
    )


def arrangement(cells: np.ndarray, red: int) -> str:
    """Return the color of each cell, row by row: r, b, or - for a cell without a dot.

    >>> arrangement(np.array([0, 4, 8]), red=2)
    'r---r---b'
    """
    colors = ["-"] * PER_SIDE**2
    for place, cell in enumerate(cells.tolist()):
        colors[cell] = "r" if place < red else "b"
    return "".join(colors)


NUMBERS = Task(
    name="numbers",
    labels=arithmetic.LABELS,
    compose=compose,
    medium=Medium(column="images", suffix=".png", save=save_png),
    kinds={TEXT: arithmetic.LABELS, DOTS: arithmetic.LABELS},
)
"""Sums as text and dots as PNG files in equal parts; the label is the result, or the number of dots."""
