"""A task about colored shapes, with questions of four kinds and options in random order, as in SAT (arXiv:2412.07755).

- `side`: where is one shape, seen from another? Both are in one row or one column.
- `count`: how many shapes have a color?
- `larger`: which of two shapes is larger?
- `nearer`: which of two overlapping shapes of one form and size covers the other?

No scene, apart from the exact places, sizes and hues of its shapes, is in a held-out split and in another split. The
options of a question say nothing about the answer: its texts are equally often right, for each kind and each letter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import ImageDraw

from lightning_mmrl.data.synthetic.choices import LETTERS, in_turn, lettered, listed, shuffled
from lightning_mmrl.data.synthetic.geometry import outline
from lightning_mmrl.data.synthetic.pictures import (
    GRID_PX,
    PALETTE,
    TILE_PX,
    Fill,
    disk,
    framed_ground,
    render,
    save_png,
    tinted,
    with_noise,
)
from lightning_mmrl.data.synthetic.task import Medium, Plan, Problem, Task, belongs

SIDES = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}
NUMBERS = ("one", "two", "three", "four")
COLORS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle")
PAIRS = tuple((one, other) for one in COLORS for other in COLORS if one != other)

_PER_SIDE = GRID_PX // TILE_PX
_NOISE = 6.0
_JITTER_PX = 1.5
_RADIUS_PX = (8.0, 10.0)
_SMALL_PX, _LARGE_PX = (5.5, 7.0), (10.0, 12.0)
_OVERLAP_RADIUS_PX = (15.0, 17.0)
_OVERLAP_PX = 14.0
_OFF_CENTER_PX = 7.0
_DIRECTIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A shape; its center (x, y) and radius are in pixels. `place` names where it is, up to small changes."""

    form: str
    color: str
    place: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The shapes from the farthest to the nearest, the question about them, and its options."""

    shapes: Sequence[Shape]
    question: str
    right: str
    wrong: Sequence[str]

    @property
    def name(self) -> str:
        """The scene without its small changes, and the question."""
        return " ".join([self.question, *(f"{each.color}-{each.form}-{each.place}" for each in self.shapes)])


def compose(plan: Plan, *, letters: bool = True) -> Problem:
    """Draw a scene that its split may have, and ask about it."""
    rng = plan.generator()
    scene = _KINDS[plan.question_type](plan, rng)
    while not belongs(scene.name, plan.split):
        scene = _KINDS[plan.question_type](plan, rng)
    options = shuffled(scene.right, scene.wrong, plan.label, rng)
    ask = lettered if letters else listed
    ground = framed_ground(GRID_PX, rng)
    fills = [tinted(each.color, rng) for each in scene.shapes]
    return Problem(
        question=f"<image>{ask(scene.question, options)}",
        thought=scene.right,
        answer=plan.label if letters else scene.right,
        facts={"options": options, "scene": scene.name},
        signal=with_noise(render(ground, partial(_draw, scene.shapes, fills)), _NOISE, rng),
    )


def _side(plan: Plan, rng: np.random.Generator) -> Scene:
    right = in_turn(plan, tuple(SIDES))
    color, other = PAIRS[rng.integers(len(PAIRS))]
    near, far = sorted(rng.permutation(_PER_SIDE)[:2].tolist())
    line = int(rng.integers(_PER_SIDE))
    down, across = SIDES[right]
    places = (near, far) if down + across < 0 else (far, near)
    cells = [(place, line) if down else (line, place) for place in places]
    shapes = [_in_cell(name, cell, rng) for name, cell in zip((color, other), cells, strict=True)]
    return Scene(
        shapes=shapes,
        question=f"Where is the {color} shape, seen from the {other} shape?",
        right=right,
        wrong=[side for side in SIDES if side != right],
    )


def _count(plan: Plan, rng: np.random.Generator) -> Scene:
    right = in_turn(plan, NUMBERS)
    color, *others = (COLORS[place] for place in rng.permutation(len(COLORS)))
    number = NUMBERS.index(right) + 1
    colors = [color] * number + [others[place] for place in rng.integers(len(others), size=rng.integers(5))]
    cells = [divmod(cell, _PER_SIDE) for cell in rng.permutation(_PER_SIDE**2)[: len(colors)].tolist()]
    return Scene(
        shapes=[_in_cell(name, cell, rng) for name, cell in zip(colors, cells, strict=True)],
        question=f"How many {color} shapes are there?",
        right=right,
        wrong=[number for number in NUMBERS if number != right],
    )


def _larger(plan: Plan, rng: np.random.Generator) -> Scene:
    right, wrong = in_turn(plan, PAIRS)
    form = SHAPES[rng.integers(len(SHAPES))]
    cells = [divmod(cell, _PER_SIDE) for cell in rng.permutation(_PER_SIDE**2)[:2].tolist()]
    shapes = [
        replace(_in_cell(color, cell, rng), form=form, radius=rng.uniform(*bounds))
        for color, cell, bounds in zip((right, wrong), cells, (_LARGE_PX, _SMALL_PX), strict=True)
    ]
    return Scene(shapes=shapes, question="Which shape is larger?", right=right, wrong=[wrong])


def _nearer(plan: Plan, rng: np.random.Generator) -> Scene:
    right, wrong = in_turn(plan, PAIRS)
    form = SHAPES[rng.integers(len(SHAPES))]
    radius = rng.uniform(*_OVERLAP_RADIUS_PX)
    direction = int(rng.integers(_DIRECTIONS))
    turn = 2 * math.pi * direction / _DIRECTIONS
    off = rng.integers(-1, 2, size=2)
    middle = GRID_PX / 2 + off * _OFF_CENTER_PX + rng.uniform(-_JITTER_PX, _JITTER_PX, size=2)
    shapes = [
        Shape(
            form=form,
            color=color,
            place=f"{direction}{off[0]:+}{off[1]:+}",
            x=middle[0] + sign * math.cos(turn) * _OVERLAP_PX / 2,
            y=middle[1] + sign * math.sin(turn) * _OVERLAP_PX / 2,
            radius=radius,
        )
        for color, sign in ((wrong, -1), (right, 1))
    ]
    return Scene(shapes=shapes, question="Which shape is nearer?", right=right, wrong=[wrong])


_KINDS = {"side": _side, "count": _count, "larger": _larger, "nearer": _nearer}


def _in_cell(color: str, cell: tuple[int, int], rng: np.random.Generator) -> Shape:
    """Return a shape near the middle of a cell (row, column) of the grid."""
    x, y = (np.array(cell[::-1]) + 0.5) * TILE_PX + rng.uniform(-_JITTER_PX, _JITTER_PX, size=2)
    form = SHAPES[rng.integers(len(SHAPES))]
    return Shape(
        form=form, color=color, place=f"{cell[0]}{cell[1]}", x=float(x), y=float(y), radius=rng.uniform(*_RADIUS_PX)
    )


def _draw(shapes: Sequence[Shape], fills: Sequence[Fill], canvas: ImageDraw.ImageDraw, unit: int) -> None:
    for shape, fill in zip(shapes, fills, strict=True):
        if shape.form == "circle":
            disk(canvas, unit, x=shape.x, y=shape.y, radius=shape.radius, fill=fill)
        else:
            corners = (outline(shape.form, 0.0) * shape.radius + (shape.x, shape.y)) * unit
            canvas.polygon([tuple(corner) for corner in corners.tolist()], fill=fill)


RELATIONS = Task(
    name="relations",
    labels=LETTERS,
    compose=compose,
    medium=Medium(column="images", suffix=".png", save=save_png),
    kinds={"side": LETTERS, "count": LETTERS, "larger": LETTERS[:2], "nearer": LETTERS[:2]},
    sizes={"cold_start": 1920, "train": 1536, "validation": 384, "test": 384},
)
"""Shapes as PNG files and options with letters; the answer is the letter of the right one."""

RELATIONS_TEXT = replace(
    RELATIONS,
    name="relations_text",
    labels=(*SIDES, *NUMBERS, *COLORS),
    compose=partial(compose, letters=False),
)
"""The same without letters; the answer is the text of the right option, as in SAT."""
