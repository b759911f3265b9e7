"""A Sokoban task: a picture of a small level, and a whole plan as the answer.

A level is one picture of square tiles, each the size of a visual token, without a row of walls around: the edge of the
picture is the wall. Its edges differ in color, so that a tile shows where it is. All levels of a layout that a shortest
plan of 1 to `longest` moves solves are in classes by its length. Each class has the same number of levels, and each
level belongs to one split for every seed; the mirror image of a level may be in another split.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from PIL import ImageDraw

from lightning_mmrl.data.synthetic.pictures import (
    TILE_PX,
    Fill,
    disk,
    framed_ground,
    render,
    rgb,
    save_png,
    with_noise,
)
from lightning_mmrl.data.synthetic.task import Medium, Plan, Problem, Task, random_stream
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.sokoban import LEVEL, Level, State, shortest_plan, write_plan

QUESTION = "<image>How do you push the box to the goal?"
NUM_LEVELS: Mapping[str, int] = {"validation": 40, "test": 50, "train": 150}
"""Levels of each class; the cold start and the training share theirs."""

_MAX_DRAWS = 200_000
_NOISE = 6.0
_COLORS = {
    "wall": (120.0, 120.0, 130.0),
    "target": (225.0, 60.0, 60.0),
    "box": (190.0, 130.0, 60.0),
    "player": (70.0, 130.0, 240.0),
}
_TARGET_PX, _PLAYER_PX = 10, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which levels a task has: `interior` x `interior` tiles, up to `walls` walls, `boxes` boxes and as many targets.

    A shortest plan has at most `longest` moves.
    """

    interior: int = 3
    walls: int = 2
    boxes: int = 1
    longest: int = 4


def compose(plan: Plan, *, layout: Layout) -> Problem:
    """Draw a level whose shortest plan is as long as the label says; a split repeats levels after it has used all."""
    rng = plan.generator()
    levels = levels_of(layout, int(plan.label), plan.split)
    order = random_stream(plan.task, plan.seed, int(plan.label)).permutation(len(levels))
    level, moves = levels[order[plan.serial % len(levels)]]
    return Problem(
        question=QUESTION,
        thought=describe(level),
        answer=write_plan(moves),
        facts={LEVEL: level.rows(), "moves": len(moves)},
        signal=draw_level(level, rng),
    )


def describe(level: Level) -> str:
    """Return the places of player, boxes and targets, in tiles counted row by row from 1.

    >>> describe(Level.parse(["@  ", " $ ", " . "]))
    'player 1 box 5 goal 8'
    """
    width = level.size[1]

    def places(name: str, cells: frozenset[tuple[int, int]]) -> list[str]:
        return [f"{name} {row * width + column + 1}" for row, column in sorted(cells)]

    parts = (("player", frozenset([level.start.player])), ("box", level.start.boxes), ("goal", level.targets))
    return " ".join(text for name, cells in parts for text in places(name, cells))


def levels_of(layout: Layout, moves: int, split: str) -> tuple[tuple[Level, tuple[str, ...]], ...]:
    """Return the levels of a class that a split may use, each with a shortest plan; the same for every seed.

    Raises:
        DataError: The layout has too few levels whose shortest plan has this number of moves.
    """
    found = _classes(layout)[moves]
    held_out = NUM_LEVELS["validation"], NUM_LEVELS["validation"] + NUM_LEVELS["test"]
    if split == "validation":
        return found[: held_out[0]]
    return found[held_out[0] : held_out[1]] if split == "test" else found[held_out[1] :]


@lru_cache
def _classes(layout: Layout) -> Mapping[int, tuple[tuple[Level, tuple[str, ...]], ...]]:
    """Draw different levels of a layout until every class is full; a class is the length of the shortest plan."""
    wanted = sum(NUM_LEVELS.values())
    rng = random_stream("sokoban levels", 0, layout.interior, layout.walls, layout.boxes, layout.longest)
    classes: dict[int, dict[Level, tuple[str, ...]]] = {moves: {} for moves in range(1, layout.longest + 1)}
    seen: set[Level] = set()
    for _ in range(_MAX_DRAWS):
        level = _random_level(layout, rng)
        if level in seen:
            continue
        seen.add(level)
        plan = shortest_plan(level, layout.longest)
        if plan is not None and len(classes[len(plan)]) < wanted:
            classes[len(plan)][level] = plan
            if all(len(each) == wanted for each in classes.values()):
                return {moves: tuple(each.items()) for moves, each in classes.items()}
    counts = {moves: len(each) for moves, each in classes.items()}
    raise DataError(
        f"{layout} has too few levels by the number of moves: {counts}, and {wanted} of each are needed; "
        "give another interior, more walls, or a smaller longest"
    )


def _random_level(layout: Layout, rng: np.random.Generator) -> Level:
    """Draw a level whose things all have cells of their own."""
    cells = [divmod(cell, layout.interior) for cell in rng.permutation(layout.interior**2).tolist()]
    boxes, targets = cells[1 : 1 + layout.boxes], cells[1 + layout.boxes : 1 + 2 * layout.boxes]
    rest = cells[1 + 2 * layout.boxes :]
    return Level(
        size=(layout.interior, layout.interior),
        walls=frozenset(rest[: rng.integers(layout.walls + 1)]),
        targets=frozenset(targets),
        start=State(cells[0], frozenset(boxes)),
    )


def draw_level(level: Level, rng: np.random.Generator) -> np.ndarray:
    """Draw a square level: gray walls, red diamonds as targets, brown boxes, and a blue disk as the player."""
    fills = {thing: rgb(np.array(color) + rng.uniform(-10.0, 10.0, size=3)) for thing, color in _COLORS.items()}
    ground = framed_ground(level.size[0] * TILE_PX, rng)
    return with_noise(render(ground, partial(_draw, level, fills)), _NOISE, rng)


def _draw(level: Level, fills: Mapping[str, Fill], canvas: ImageDraw.ImageDraw, unit: int) -> None:
    for name, margin_px, cells in (("wall", 4, level.walls), ("box", 6, level.start.boxes)):
        for row, column in cells:
            ends = [(each * TILE_PX + margin_px) * unit for each in (column, row)]
            far = [(each * TILE_PX + TILE_PX - margin_px) * unit - 1 for each in (column, row)]
            canvas.rectangle([*ends, *far], fill=fills[name])
    for x, y in map(_middle, level.targets):
        corners = [(x, y - _TARGET_PX), (x + _TARGET_PX, y), (x, y + _TARGET_PX), (x - _TARGET_PX, y)]
        canvas.polygon([(across * unit, down * unit) for across, down in corners], fill=fills["target"])
    x, y = _middle(level.start.player)
    disk(canvas, unit, x=x, y=y, radius=_PLAYER_PX, fill=fills["player"])


def _middle(cell: tuple[int, int]) -> tuple[float, float]:
    """Return the middle (x, y) of a tile, in pixels."""
    return (cell[1] + 0.5) * TILE_PX, (cell[0] + 0.5) * TILE_PX


def sokoban_task(name: str, layout: Layout) -> Task:
    """Return the task of a layout."""
    return Task(
        name=name,
        labels=tuple(map(str, range(1, layout.longest + 1))),
        compose=partial(compose, layout=layout),
        medium=Medium(column="images", suffix=".png", save=save_png),
        sizes={"cold_start": 400, "train": 1600, "validation": 160, "test": 200},
    )


SOKOBAN = sokoban_task("sokoban", Layout())
"""Levels of 3 x 3 tiles with one box as PNG files; the solution is a shortest plan, of 1 to 4 moves."""

SOKOBAN_LARGE = sokoban_task("sokoban_large", Layout(interior=4, walls=3, longest=6))
"""Levels of 4 x 4 tiles, solved by 1 to 6 moves; `model.build.frame_size=112` makes a tile a token of a tiny model."""
