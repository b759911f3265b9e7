"""Which way does it move? A disk that crosses a part of the frame, or rests."""

from pathlib import Path

import numpy as np
from PIL import ImageDraw

from lightning_mmrl.data.synthetic.pictures import SIZE_PX, coverage, draw_colors, paint
from lightning_mmrl.data.synthetic.task import Medium, Plan, Problem, Task
from lightning_mmrl.data.synthetic.video_file import write_silent_clip

FRAMES_PER_SECOND = 8
NUM_FRAMES = 8
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
THOUGHTS = {"left": "sideways", "right": "sideways", "up": "upright", "down": "upright", "still": "no change"}
QUESTION = "<video>Which way does it move?"

_NOISE = 6.0
_RADIUS_PX = (8.0, 11.0)
_DISTANCE_PX = (20.0, 30.0)


def compose(plan: Plan) -> Problem:
    """Film a disk that moves as the label says, at constant speed."""
    rng = plan.generator()
    radius = rng.uniform(*_RADIUS_PX)
    distance = rng.uniform(*_DISTANCE_PX)
    margin = radius + 1.0 + distance / 2
    middle = rng.uniform(margin, SIZE_PX - margin, size=2)
    travel = np.array(STEPS[plan.label]) * distance
    centers = middle + np.linspace(-0.5, 0.5, NUM_FRAMES)[:, None] * travel
    background, foreground = draw_colors(rng)
    covered = np.stack([_disk(x, y, radius) for x, y in centers.tolist()])
    return Problem(
        question=QUESTION,
        thought=THOUGHTS[plan.label],
        facts={"distance_px": round(float(np.abs(travel).sum()), 2)},
        signal=paint(covered, background, foreground, _NOISE, rng),
    )


def save_mp4(path: Path, frames: np.ndarray) -> None:
    """Write RGB frames uint8 (T, H, W, 3) without sound."""
    write_silent_clip(path, frames, FRAMES_PER_SECOND)


def _disk(x: float, y: float, radius: float) -> np.ndarray:
    def draw(canvas: ImageDraw.ImageDraw, unit: int) -> None:
        box = [(x - radius) * unit, (y - radius) * unit, (x + radius) * unit, (y + radius) * unit]
        canvas.ellipse(box, fill=255)

    return coverage(draw)


MOTION = Task(
    name="motion",
    labels=tuple(STEPS),
    compose=compose,
    medium=Medium(column="videos", suffix=".mp4", save=save_mp4),
)
"""Moving disks as mp4 files without sound; the label is the direction."""
