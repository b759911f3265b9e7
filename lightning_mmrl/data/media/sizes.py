"""How many frames of a clip, and how large pictures and frames are shown: the arithmetic of qwen-vl-utils 0.0.14.

qwen-omni-utils 0.0.9 has the same. `tools/golden/record_frame_choices.py` runs both packages and writes down what they
choose; a test compares. **Deviations:** the packages take sizes of their own where none is given, and here the bounds
of the model's processor take that place; they lower a `max_pixels` above 768 tokens with a warning, and here it is
refused; they fail later on a side of 0 pixels.
"""

import math

import numpy as np

from lightning_mmrl.errors import ConfigError, MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import OwnSizes

FRAME_FACTOR = 2
"""Frames that share a token; numbers of frames are multiples of it."""
MIN_FRAMES, MAX_FRAMES = 4, 768
"""Bounds of the number of frames at a rate, where no key gives them."""

_MAX_RATIO = 200
_FRAME_TOKENS = 768
_CLIP_TOKENS = 128_000
_CLIP_SHARE = 0.9
_ABOVE_LEAST = 1.05
"""A frame may have this many times its fewest pixels, however many frames share the pixels of a clip."""


def smart_resize(height: int, width: int, factor: int, min_pixels: float, max_pixels: float) -> tuple[int, int]:
    """The size with the same proportions, sides that are multiples of `factor`, and a number of pixels within bounds.

    >>> smart_resize(720, 1280, 28, 3136, 200_000)
    (308, 588)

    Raises:
        MediaError: No size will do: the bounds contradict each other, the sides differ too much, or one becomes 0.
    """
    what = f"{width} x {height} pixels"
    if min_pixels > max_pixels:
        raise MediaError(f"{what} would be shown with at least {min_pixels:.0f} and at most {max_pixels:.0f} pixels")
    if max(height, width) / min(height, width) > _MAX_RATIO:
        raise MediaError(f"{what} have sides in a ratio above {_MAX_RATIO}, which the model does not take; crop it")
    shown_height = max(factor, round(height / factor) * factor)
    shown_width = max(factor, round(width / factor) * factor)
    if shown_height * shown_width > max_pixels:
        beta = math.sqrt((height * width) / max_pixels)
        shown_height = math.floor(height / beta / factor) * factor
        shown_width = math.floor(width / beta / factor) * factor
    elif shown_height * shown_width < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        shown_height = math.ceil(height * beta / factor) * factor
        shown_width = math.ceil(width * beta / factor) * factor
    if not shown_height or not shown_width:
        raise MediaError(
            f"{what} have no size of at most {max_pixels:.0f} pixels whose sides are multiples of {factor}; crop it or "
            "allow more pixels"
        )
    return shown_height, shown_width


def image_bounds(settings: MediaSettings, own: OwnSizes) -> tuple[int, int]:
    """Fewest and most pixels of a picture."""
    least, most = settings.min_image_pixels, settings.max_image_pixels
    return own.image[0] if least is None else least, own.image[1] if most is None else most


def frame_bounds(num_frames: int, settings: MediaSettings, own: OwnSizes) -> tuple[float, float]:
    """Fewest and most pixels of each of so many frames."""
    num_frames = math.ceil(num_frames / FRAME_FACTOR) * FRAME_FACTOR
    own_least, own_most = own_frame_bounds(num_frames, own)
    least, most, total = settings.min_frame_pixels, settings.max_frame_pixels, settings.total_pixels
    least = own_least if least is None else least
    total = _CLIP_TOKENS * own.factor * own.factor * _CLIP_SHARE if total is None else total
    limit = max(min(_FRAME_TOKENS * own.factor**2, total / num_frames * FRAME_FACTOR), int(least * _ABOVE_LEAST))
    return least, min(own_most if most is None else most, limit)


def own_frame_bounds(num_frames: int, own: OwnSizes) -> tuple[int, int]:
    """Fewest and most pixels of each of so many frames by the model's own processor."""
    least, most = own.frame
    if own.per_clip:
        least, most = least // num_frames, most // num_frames
    return least, most if own.frame_limit is None else min(most, own.frame_limit)


def smart_nframes(settings: MediaSettings, total_frames: int, rate: float) -> int:
    """How many of `total_frames` at `rate` per second are taken, by `fps` or else by `num_frames`; 0 for too few.

    >>> smart_nframes(MediaSettings(fps=2.0), 300, 30.0), smart_nframes(MediaSettings(num_frames=7), 300, 30.0)
    (20, 8)
    """
    if settings.fps is None:
        number = round(settings.num_frames / FRAME_FACTOR) * FRAME_FACTOR
    else:
        least = math.ceil((settings.min_frames or MIN_FRAMES) / FRAME_FACTOR) * FRAME_FACTOR
        most = settings.max_frames or min(MAX_FRAMES, total_frames)
        most = math.floor(most / FRAME_FACTOR) * FRAME_FACTOR
        wanted = min(max(total_frames / rate * settings.fps, least), most, total_frames)
        number = math.floor(wanted / FRAME_FACTOR) * FRAME_FACTOR
    return number if FRAME_FACTOR <= number <= total_frames else 0


def evenly(first: int, last: int, number: int) -> list[int]:
    """Indices of `number` frames from the first to the last: `torch.linspace(first, last, number).round()`.

    torch counts from the nearer end in float32 with fused multiply-adds; float64 holds their products exactly.

    >>> evenly(0, 29, 4)
    [0, 10, 19, 29]
    """
    step = float(np.float32(last - first) / np.float32(number - 1))
    places = np.arange(number)
    values = np.where(places < number // 2, first + step * places, last - step * places[::-1])
    return values.astype(np.float32).round().astype(int).tolist()


def check_sizes(settings: MediaSettings, own: OwnSizes | None) -> None:
    """Refuses bounds that no picture or frame of a model can keep.

    Args:
        settings: The bounds.
        own: The model's own sizes; None for a model that reads no pictures.

    Raises:
        ConfigError: Naming the key, its value and a value that would do.
    """
    if own is None:
        return
    square, side = own.factor**2, f"{own.factor} x {own.factor} pixels of {own.shown_by}"
    for key in ("max_frame_pixels", "total_pixels", "max_image_pixels"):
        value = getattr(settings, key)
        if value is not None and value < square:
            raise ConfigError(f"data.media.{key} is {value}, and one token takes {side}; it must be at least {square}")
    least, most = settings.min_frame_pixels or 0, settings.max_frame_pixels
    limit = max(_FRAME_TOKENS * square, int(least * _ABOVE_LEAST))
    if most is not None and most > limit:
        raise ConfigError(
            f"data.media.max_frame_pixels is {most}, and a frame has at most {_FRAME_TOKENS} tokens of {side}; it must "
            f"be at most {limit}"
        )
    _check_contradiction("image", settings, own, image_bounds(settings, own))
    if not own.per_clip:  # otherwise the model's own bounds depend on the number of frames
        _check_contradiction("frame", settings, own, frame_bounds(FRAME_FACTOR, settings, own))


def _check_contradiction(kind: str, settings: MediaSettings, own: OwnSizes, bounds: tuple[float, float]) -> None:
    """Refuses one bound of a key that contradicts the other bound, which is the processor's own."""
    given = {end: getattr(settings, f"{end}_{kind}_pixels") for end in ("min", "max")}
    least, most = bounds
    if least <= most or all(value is None for value in given.values()):
        return
    end, free, theirs = "min", "max", f"at most {most:.0f}"
    if given["min"] is None:
        end, free, theirs = "max", "min", f"at least {least:.0f}"
    raise ConfigError(
        f"data.media.{end}_{kind}_pixels is {given[end]}, and the processor of {own.shown_by} takes {theirs}; set "
        f"data.media.{free}_{kind}_pixels too"
    )
