"""Draws shapes with smooth outlines on a small canvas, adds noise, and writes PNG files, for all drawn tasks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE_PX = 56
"""Height and width of every picture: the frame size of the tiny model, and the minimum for Qwen2.5 processors."""

_SUPERSAMPLING = 4


def coverage(draw: Callable[[ImageDraw.ImageDraw, int], None]) -> np.ndarray:
    """Return the share of each pixel that a drawing covers, float32 (SIZE_PX, SIZE_PX) in 0..1.

    `draw` gets a canvas and the number of canvas units per pixel, and fills shapes with 255.
    """
    canvas = Image.new("L", (SIZE_PX * _SUPERSAMPLING, SIZE_PX * _SUPERSAMPLING), 0)
    draw(ImageDraw.Draw(canvas), _SUPERSAMPLING)
    units = np.asarray(canvas, dtype=np.float32) / 255.0
    return units.reshape(SIZE_PX, _SUPERSAMPLING, SIZE_PX, _SUPERSAMPLING).mean(axis=(1, 3))


def disk(canvas: ImageDraw.ImageDraw, unit: int, *, x: float, y: float, radius: float, fill: int = 255) -> None:
    """Draw a disk; its place and radius are in pixels."""
    canvas.ellipse([(x - radius) * unit, (y - radius) * unit, (x + radius) * unit, (y + radius) * unit], fill=fill)


def draw_colors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a dark background color and a light foreground color, RGB (3,) in 0..255."""
    return rng.uniform(10.0, 60.0, size=3), rng.uniform(180.0, 250.0, size=3)


def paint(
    covered: np.ndarray, background: np.ndarray, foreground: np.ndarray, noise: float, rng: np.random.Generator
) -> np.ndarray:
    """Blend two colors (3,) or pictures (H, W, 3) by coverage (..., H, W), and add noise.

    `noise` is a standard deviation on the 0..255 scale.

    Returns:
        Pixels uint8 (..., H, W, 3).
    """
    mixed = background + covered[..., None] * (foreground - background)
    return np.clip(np.round(mixed + noise * rng.standard_normal(mixed.shape)), 0, 255).astype(np.uint8)


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write RGB pixels uint8 (H, W, 3)."""
    Image.fromarray(pixels).save(path, format="PNG")
