"""A task about motion: a disk crosses the frame or rests at one side, between four walls of different colors.

The walls differ in color so that a single patch shows which side it is on: a tiny model with random weights hardly
learns left from right by position alone.
"""

from functools import partial

import numpy as np

from lightning_mmrl.data.synthetic.pictures import SIZE_PX, coverage, disk, draw_colors, paint
from lightning_mmrl.data.synthetic.task import Medium, Plan, Problem, Task
from lightning_mmrl.data.synthetic.video_file import write_silent_clip

FRAMES_PER_SECOND = 8
NUM_FRAMES = 8
PATHS = {
    "left": (("right", "left"),),
    "right": (("left", "right"),),
    "up": (("bottom", "top"),),
    "down": (("top", "bottom"),),
    "still": (("left", "left"), ("right", "right"), ("top", "top"), ("bottom", "bottom")),
}
"""Start and end sides of the disk by label; one side alone does not determine the label."""

QUESTION = "<video>Which way does it move?"

_SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
_WALL_COLORS = {"left": (200, 40, 40), "right": (40, 60, 220), "top": (210, 200, 40), "bottom": (40, 180, 60)}
_WALL_PX = 6
_NOISE = 6.0
_RADIUS_PX = (7.0, 9.0)
_OFF_CENTER_PX = (9.0, 11.0)
_DRIFT_PX = 2.0


def compose(plan: Plan) -> Problem:
    """Render a disk that moves in the direction of the label, at constant speed."""
    rng = plan.generator()
    start, end = PATHS[plan.label][plan.serial % len(PATHS[plan.label])]
    radius = rng.uniform(*_RADIUS_PX)
    middle = SIZE_PX / 2 + rng.uniform(-_DRIFT_PX, _DRIFT_PX, size=2)
    sides = np.array([_SIDES[start], _SIDES[end]]) * rng.uniform(*_OFF_CENTER_PX)
    share = np.linspace(0.0, 1.0, NUM_FRAMES)[:, None]
    centers = middle + (1.0 - share) * sides[0] + share * sides[1]
    background, foreground = draw_colors(rng)
    covered = np.stack([coverage(partial(disk, x=x, y=y, radius=radius)) for x, y in centers.tolist()])
    room = np.tile(background, (SIZE_PX, SIZE_PX, 1))
    room[:_WALL_PX] = _WALL_COLORS["top"]
    room[-_WALL_PX:] = _WALL_COLORS["bottom"]
    room[_WALL_PX:-_WALL_PX, :_WALL_PX] = _WALL_COLORS["left"]
    room[_WALL_PX:-_WALL_PX, -_WALL_PX:] = _WALL_COLORS["right"]
    return Problem(
        question=QUESTION,
        thought=f"{start} to {end}",
        facts={"from_side": start, "to_side": end},
        signal=paint(covered, room, foreground, _NOISE, rng),
    )


MOTION = Task(
    name="motion",
    labels=tuple(PATHS),
    compose=compose,
    medium=Medium(column="videos", suffix=".mp4", save=partial(write_silent_clip, fps=FRAMES_PER_SECOND)),
)
"""Moving disks as mp4 files without sound; the label is the direction."""
