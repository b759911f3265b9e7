"""Reads moving pictures (GIF, APNG, WebP, AVIF) as clips with Pillow, since FFmpeg animates neither WebP nor AVIF."""

from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_mmrl.data.media.gif import missing_end
from lightning_mmrl.data.media.image import DAMAGE, in_words, open_picture, rgb
from lightning_mmrl.data.media.opened import MediaFile
from lightning_mmrl.data.media.selection import check_duration, check_pixels, select_frames
from lightning_mmrl.data.media.sizing import FrameStack
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import DecodedVideo, OwnSizes
from lightning_mmrl.types.records import MediaRef

_SHORTEST_MS = 20
_USUAL_MS = 100
"""A frame that declares less than `_SHORTEST_MS` is shown for `_USUAL_MS`, as in browsers and FFmpeg."""


def read_moving(file: MediaFile, ref: MediaRef, settings: MediaSettings, own: OwnSizes | None) -> DecodedVideo:
    """Reads frames of the span, chosen as `select_frames` says, over a white background; see `read_video` for sizes.

    Raises:
        MediaError: The file cannot be decoded, is too large, too long, its span is empty, or no size will do.
    """
    path = file.path
    try:
        with open_picture(file, settings) as image:
            check_pixels(path, image.width * image.height, settings)
            ends_s = frame_ends_s(path, image, settings)
            starts_s = np.concatenate([[0.0], ends_s[:-1]])
            end_s = float(ends_s[-1])
            chosen = select_frames(path, starts_s, ref, settings, len(ends_s) / end_s, end_s=end_s)
            stack = FrameStack(path, len(chosen.indices), settings, own)
            for index in sorted(set(chosen.indices)):
                image.seek(index)
                stack.put([place for place, each in enumerate(chosen.indices) if each == index], np.array(rgb(image)))
            cut_off = missing_end(file) if image.format == "GIF" else ()
    except Image.DecompressionBombError as error:
        raise MediaError(f"{path}: {error}; scale the clip down") from error
    except DAMAGE as error:
        raise MediaError(
            f"{path}: video cannot be decoded ({in_words(error)}); re-encode or remove the clip"
        ) from error
    return DecodedVideo(
        frames=stack.frames,
        timestamps_s=chosen.timestamps_s,
        duration_s=chosen.duration_s,
        resized_from=stack.resized_from,
        warnings=(*chosen.warnings, *cut_off, *stack.warnings),
    )


def frame_ends_s(path: Path, image: Image.Image, settings: MediaSettings) -> np.ndarray:
    """End time of each frame of a moving picture.

    Raises:
        MediaError: The picture is too long.
    """
    ends_ms: list[float] = []
    for index in count():
        try:
            image.seek(index)
            image.load()  # Pillow has a WebP or AVIF frame's duration only once the frame is decoded
        except EOFError:
            break
        asked_ms = float(image.info.get("duration", 0))
        ends_ms.append((ends_ms[-1] if ends_ms else 0.0) + (asked_ms if asked_ms >= _SHORTEST_MS else _USUAL_MS))
        check_duration(path, ends_ms[-1] / 1000, settings)
    return np.array(ends_ms) / 1000
