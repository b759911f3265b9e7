"""Draws cartoon faces: a short film of one head whose brows, eyes and mouth show a face group."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass

import numpy as np

FRAME_SIZE_PX = 112
FRAMES_PER_SECOND = 8
NUM_FRAMES = 12

Color = tuple[int, int, int]
"""Red, green and blue, each in 0..255."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceStyle:
    """Difficulty and look of the faces.

    `strength_range` is the share of the full expression that a clip shows at its peak. `rest_spread` (per speaker) and
    `jitter` (per clip) are standard deviations of every expression parameter, as a share of its full movement.
    `pixel_noise`, `light_spread` and `color_spread` are standard deviations on the 0..255 scale. `center_spread_px`
    (per speaker) is the standard deviation of the head's position, and `drift_px` (per clip) the size of its movement.
    """

    strength_range: tuple[float, float] = (0.6, 1.0)
    rest_spread: float = 0.1
    jitter: float = 0.12
    pixel_noise: float = 10.0
    light_spread: float = 10.0
    scale_range_px: tuple[float, float] = (39.0, 44.0)
    center_spread_px: float = 1.5
    drift_px: float = 1.1
    color_spread: float = 8.0
    skin_palette: tuple[Color, ...] = ((244, 208, 176), (224, 172, 130), (184, 126, 86), (134, 88, 60), (250, 220, 120))
    background_palette: tuple[Color, ...] = (
        (90, 130, 170),
        (120, 160, 120),
        (170, 150, 170),
        (200, 190, 150),
        (70, 80, 90),
    )
    stripe_contrast: float = 0.0
    outlined: bool = False


OTHER_FACE_STYLE = FaceStyle(
    pixel_noise=13.5,
    skin_palette=((200, 220, 200), (170, 190, 225), (225, 190, 215)),
    background_palette=((210, 110, 80), (60, 140, 130), (150, 90, 150)),
    stripe_contrast=22.0,
    outlined=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """Parameters of the moving parts of a face, in head radii (y points down); the defaults are the face at rest."""

    brow_height: float = 0.50
    brow_tilt: float = 0.0
    eye_opening: float = 0.12
    mouth_curve: float = 0.0
    mouth_opening: float = 0.0


EXPRESSIONS: Mapping[str, Expression] = {
    "lowered": Expression(brow_height=0.36, brow_tilt=0.34, eye_opening=0.08, mouth_curve=-0.12),
    "raised": Expression(brow_height=0.68, brow_tilt=-0.12, eye_opening=0.21, mouth_opening=0.12),
    "still": Expression(),
    "smile": Expression(eye_opening=0.09, mouth_curve=0.34, mouth_opening=0.04),
}
_REST = np.array(astuple(Expression()))
_FULL_MOVEMENT = np.array([0.18, 0.34, 0.09, 0.34, 0.12])


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceIdentity:
    """Features that all clips of one speaker share. Colors are float (3,) arrays in 0..255."""

    skin: np.ndarray
    hair: np.ndarray
    background: np.ndarray
    center_px: np.ndarray
    scale_px: float
    head_height: float
    eye_spacing: float
    brow_thickness: float
    hairline: float
    rest: np.ndarray


def draw_identity(style: FaceStyle, rng: np.random.Generator) -> FaceIdentity:
    """Draw one speaker's face."""

    def color(palette: tuple[Color, ...]) -> np.ndarray:
        chosen = np.array(palette[rng.integers(len(palette))], dtype=np.float64)
        return np.clip(chosen + rng.normal(0.0, style.color_spread, 3), 0, 255)

    return FaceIdentity(
        skin=color(style.skin_palette),
        hair=rng.uniform(20, 120) * rng.uniform(0.6, 1.0, 3),
        background=color(style.background_palette),
        center_px=FRAME_SIZE_PX / 2 + np.clip(rng.normal(0.0, style.center_spread_px, 2), -10, 10),
        scale_px=rng.uniform(*style.scale_range_px),
        head_height=rng.uniform(1.1, 1.3),
        eye_spacing=rng.uniform(0.33, 0.45),
        brow_thickness=rng.uniform(0.09, 0.12),
        hairline=rng.uniform(0.78, 0.95),
        rest=_REST + style.rest_spread * _FULL_MOVEMENT * rng.standard_normal(5),
    )


def render_face(group: str, identity: FaceIdentity, style: FaceStyle, rng: np.random.Generator) -> np.ndarray:
    """Render one clip of a face group: uint8 (NUM_FRAMES, FRAME_SIZE_PX, FRAME_SIZE_PX, 3), RGB."""
    expression = _expression_over_time(group, identity, style, rng)
    across, down = _head_coordinates(identity, style, rng)
    image = _paint_background(identity, style, rng)
    _paint_head(image, across, down, identity, style)
    _paint_features(image, across, down, identity, expression)
    image += _light_and_noise(style, rng)
    return np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8).transpose(1, 2, 3, 0))


def _expression_over_time(
    group: str, identity: FaceIdentity, style: FaceStyle, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Return the five expression parameters over time, each (NUM_FRAMES, 1, 1), with a smooth onset."""
    strength = rng.uniform(*style.strength_range)
    start, onset, duration = rng.uniform(0.2, 0.6), rng.uniform(-2.0, 4.0), rng.uniform(1.0, 4.0)
    ramp = np.clip((np.arange(NUM_FRAMES) - onset) / duration, 0.0, 1.0)
    intensity = strength * (start + (1.0 - start) * ramp * ramp * (3.0 - 2.0 * ramp))
    movement = np.array(astuple(EXPRESSIONS[group])) - _REST
    resting = identity.rest + style.jitter * _FULL_MOVEMENT * rng.standard_normal(5)
    parameters = resting[:, None] + movement[:, None] * intensity
    parameters[2] = np.maximum(parameters[2], 0.03)
    parameters[4] = np.maximum(parameters[4], 0.0)
    return tuple(parameters.astype(np.float32)[:, :, None, None])


def _head_coordinates(
    identity: FaceIdentity, style: FaceStyle, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixel coordinates in head radii, (T, 1, W) across and (T, H, 1) down; the head drifts and nods."""
    time = np.linspace(-0.5, 0.5, NUM_FRAMES)[:, None]
    drift_px = style.drift_px * (rng.standard_normal(2) + 1.5 * rng.standard_normal(2) * time)
    drift_px[:, 1] += (
        style.drift_px * rng.uniform() * np.sin(2 * np.pi * (rng.uniform(0.7, 2.0) * time[:, 0] + rng.uniform()))
    )
    center = identity.center_px + drift_px
    scale = identity.scale_px * rng.uniform(0.96, 1.04)
    pixels = np.arange(FRAME_SIZE_PX) + 0.5
    place = ((pixels - center[:, :, None]) / scale).astype(np.float32)
    return place[:, 0, None, :], place[:, 1, :, None]


def _paint_background(identity: FaceIdentity, style: FaceStyle, rng: np.random.Generator) -> np.ndarray:
    """Return float32 (3, T, H, W): the background color with an optional stripe pattern."""
    grid = np.arange(FRAME_SIZE_PX) / FRAME_SIZE_PX
    angle, cycles = rng.uniform(0, np.pi), rng.uniform(5, 9)
    wave = np.sin(2 * np.pi * cycles * (np.cos(angle) * grid[None, :] + np.sin(angle) * grid[:, None]))
    plane = identity.background[:, None, None] + style.stripe_contrast * wave
    return np.repeat(plane.astype(np.float32)[:, None], NUM_FRAMES, axis=1)


def _paint_head(
    image: np.ndarray, across: np.ndarray, down: np.ndarray, identity: FaceIdentity, style: FaceStyle
) -> None:
    """Paint skin, hair and, if the style has one, a dark outline."""
    radius = np.sqrt(across * across + (down / identity.head_height) ** 2)
    head = _coverage(radius - 1.0, identity)
    if style.outlined:
        _paint(image, _coverage(radius - 1.1, identity), np.full(3, 25.0))
    _paint(image, head, identity.skin)
    _paint(image, head * _coverage(down + identity.hairline * identity.head_height, identity), identity.hair)


def _paint_features(
    image: np.ndarray,
    across: np.ndarray,
    down: np.ndarray,
    identity: FaceIdentity,
    expression: tuple[np.ndarray, ...],
) -> None:
    """Paint eyes, brows and mouth, working only on the rectangle that contains them."""
    rows = np.flatnonzero((np.abs(down) < 1.05).any(axis=(0, 2)))
    columns = np.flatnonzero((np.abs(across) < 0.85).any(axis=(0, 1)))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    image, across, down = image[:, :, *box], across[:, :, box[1]], down[:, box[0]]
    brow_height, brow_tilt, eye_opening, mouth_curve, mouth_opening = expression
    side = np.abs(across)

    eye_across, eye_down = side - identity.eye_spacing, down + 0.22
    eye = _coverage((np.hypot(eye_across / 0.2, eye_down / eye_opening) - 1.0) * eye_opening, identity)
    _paint(image, eye, np.full(3, 245.0))
    _paint(image, eye * _coverage(np.hypot(eye_across, eye_down) - 0.09, identity), np.full(3, 20.0))

    along = np.clip((side - identity.eye_spacing) / 0.25, -1.0, 1.0)
    brow_down = down + brow_height + 0.5 * brow_tilt * along
    beyond = np.maximum(np.abs(side - identity.eye_spacing) - 0.25, 0.0)
    _paint(image, _coverage(np.hypot(beyond, brow_down) - identity.brow_thickness, identity), identity.hair * 0.6)

    bow = np.minimum((across / 0.42) ** 2, 1.0)
    mouth_down = down - 0.58 + mouth_curve * (bow - 0.4)
    beyond = np.maximum(side - 0.42, 0.0)
    mouth = np.hypot(beyond, mouth_down) - 0.09 - mouth_opening * (1.0 - bow)
    _paint(image, _coverage(mouth, identity), np.array([140.0, 30.0, 40.0]))


def _light_and_noise(style: FaceStyle, rng: np.random.Generator) -> np.ndarray:
    """Return float32 (T, H, W) to add to every channel: a gradient of light across the picture, and pixel noise."""
    grid = np.linspace(-0.5, 0.5, FRAME_SIZE_PX)
    level, across, down = rng.normal(0.0, style.light_spread, 3)
    light = (0.5 * level + across * grid[None, :] + down * grid[:, None]).astype(np.float32)
    noise = rng.standard_normal((NUM_FRAMES, FRAME_SIZE_PX, FRAME_SIZE_PX), dtype=np.float32)
    return light + np.float32(style.pixel_noise) * noise


def _coverage(distance: np.ndarray, identity: FaceIdentity) -> np.ndarray:
    """Convert a signed distance (head radii, negative inside) to the covered share of each pixel, 0..1."""
    return np.clip(0.5 - distance * np.float32(identity.scale_px), 0.0, 1.0)


def _paint(image: np.ndarray, coverage: np.ndarray, color: np.ndarray) -> None:
    """Blend one color (3,) into the image (3, T, H, W), weighted by coverage (T, H, W)."""
    for channel in range(3):
        image[channel] += coverage * (np.float32(color[channel]) - image[channel])
