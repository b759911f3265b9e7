"""Draws shapes with smooth outlines on a small canvas, adds noise, and writes PNG files, for all drawn tasks."""

from collections.abc import Callable
from functools import reduce
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE_PX = 56
"""Height and width of a plain picture: the frame size of the tiny model, and the minimum for Qwen2.5 processors."""

TILE_PX = 28
"""Height and width of a tile: the part of a picture that is one token in Qwen2.5-VL and Qwen2.5-Omni."""

GRID_PX = 3 * TILE_PX
"""Height and width of a picture of 3 x 3 tiles."""

PALETTE = {
    "red": (215.0, 55.0, 55.0),
    "green": (55.0, 190.0, 75.0),
    "blue": (70.0, 105.0, 235.0),
    "yellow": (225.0, 205.0, 60.0),
}
"""RGB colors of things that questions name by their color."""

Fill = int | tuple[int, ...]
"""A value of a canvas: coverage in 0..255, or RGB."""

_TINT = 15.0
_FRAME_PX = 4
_FRAME = {"left": (200, 70, 200), "right": (70, 200, 200), "top": (235, 235, 235), "bottom": (235, 140, 50)}
_SUPERSAMPLING = 4


def coverage(draw: Callable[[ImageDraw.ImageDraw, int], None], size_px: int = SIZE_PX) -> np.ndarray:
    """Return the share of each pixel that a drawing covers, float32 (size_px, size_px) in 0..1.

    `draw` gets a canvas and the number of canvas units per pixel, and fills shapes with 255.
    """
    canvas = Image.new("L", (size_px * _SUPERSAMPLING, size_px * _SUPERSAMPLING), 0)
    draw(ImageDraw.Draw(canvas), _SUPERSAMPLING)
    return _averaged(np.asarray(canvas)) / np.float32(255.0)


def disk(canvas: ImageDraw.ImageDraw, unit: int, *, x: float, y: float, radius: float, fill: Fill = 255) -> None:
    """Draw a disk; its place and radius are in pixels."""
    canvas.ellipse([(x - radius) * unit, (y - radius) * unit, (x + radius) * unit, (y + radius) * unit], fill=fill)


def draw_colors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a dark background color and a light foreground color, RGB (3,) in 0..255."""
    return rng.uniform(10.0, 60.0, size=3), rng.uniform(180.0, 250.0, size=3)


def tinted(color: str, rng: np.random.Generator) -> tuple[int, ...]:
    """Return a color of the palette, slightly changed, RGB in 0..255."""
    return rgb(np.array(PALETTE[color]) + rng.uniform(-_TINT, _TINT, size=3))


def rgb(color: np.ndarray) -> tuple[int, ...]:
    """Return a color (3,) as whole numbers, which a canvas fills shapes with."""
    return tuple(np.round(color).astype(int).tolist())


def framed_ground(size_px: int, rng: np.random.Generator) -> np.ndarray:
    """Return a dark ground between four edges of different colors, (size_px, size_px, 3) in 0..255.

    A tiny model with random weights hardly learns places by position alone; an edge shows it which side a patch is on.
    """
    ground = np.tile(rng.uniform(10.0, 40.0, size=3), (size_px, size_px, 1))
    ground[:_FRAME_PX] = _FRAME["top"]
    ground[-_FRAME_PX:] = _FRAME["bottom"]
    ground[:, :_FRAME_PX] = _FRAME["left"]
    ground[:, -_FRAME_PX:] = _FRAME["right"]
    return ground


def render(ground: np.ndarray, draw: Callable[[ImageDraw.ImageDraw, int], None]) -> np.ndarray:
    """Draw colored shapes with smooth outlines over a ground, (H, W, 3) in 0..255; `draw` is as in `coverage`."""
    units = np.round(ground).astype(np.uint8).repeat(_SUPERSAMPLING, axis=0).repeat(_SUPERSAMPLING, axis=1)
    canvas = Image.fromarray(units)
    draw(ImageDraw.Draw(canvas), _SUPERSAMPLING)
    return _averaged(np.asarray(canvas))


def _averaged(units: np.ndarray) -> np.ndarray:
    """Return the mean of the units of each pixel, float32; the sums of these bytes are exact in any order."""
    rows = reduce(np.add, (units[first::_SUPERSAMPLING].astype(np.float32) for first in range(_SUPERSAMPLING)))
    sums = reduce(np.add, (rows[:, first::_SUPERSAMPLING] for first in range(_SUPERSAMPLING)))
    return sums / np.float32(_SUPERSAMPLING**2)


def paint(
    covered: np.ndarray, background: np.ndarray, foreground: np.ndarray, noise: float, rng: np.random.Generator
) -> np.ndarray:
    """Blend two colors (3,) or pictures (H, W, 3) by coverage (..., H, W), and add noise.

    `noise` is a standard deviation on the 0..255 scale.

    Returns:
        Pixels uint8 (..., H, W, 3).
    """
    return with_noise(background + covered[..., None] * (foreground - background), noise, rng)


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write RGB pixels uint8 (H, W, 3)."""
    Image.fromarray(pixels).save(path, format="PNG")


def with_noise(picture: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Return a picture (H, W, 3) as pixels uint8 with noise of this standard deviation on the 0..255 scale."""
    return np.clip(np.round(picture + noise * rng.standard_normal(picture.shape)), 0, 255).astype(np.uint8)
