"""Reads pictures as upright RGB pixels; the format is found from the content. Pillow decodes all but HEIC."""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import numpy as np
from PIL import AvifImagePlugin, Image, ImageOps, UnidentifiedImageError

from lightning_mmrl.data.media.gif import missing_end
from lightning_mmrl.data.media.heif import check_image_pixels, decode_heif
from lightning_mmrl.data.media.heif_items import is_heif
from lightning_mmrl.data.media.opened import MediaFile, of_path
from lightning_mmrl.data.media.sizing import sized_image
from lightning_mmrl.data.media.webp import canvas
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import DecodedImage, OwnSizes
from lightning_mmrl.types.records import MediaRef

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Allowed formats. Pillow would pass some others (EPS) to foreign programs. JPEG includes the MPO files of phones."""

_MOVING = frozenset({"GIF", "PNG", "WEBP", "AVIF"})
"""Formats whose frames follow one another in time; the pages of a TIFF and the views of an MPO do not."""

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, RuntimeError, struct.error, zlib.error)
"""Errors that Pillow raises for damaged files; OSError includes UnidentifiedImageError and truncation.

RuntimeError is what its AVIF decoder raises.
"""

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the decode workers already use all processors


def identify(file: MediaFile, settings: MediaSettings) -> Literal["still", "moving"] | None:
    """Tells from the content whether a file is a still or a moving picture; None if it is neither.

    Raises:
        MediaError: The picture has too many pixels.
    """
    try:
        with open_picture(file, settings) as image:
            check_image_pixels(file.path, image.width * image.height, settings)  # before `seek` decodes a frame
            if image.format in _MOVING:
                with suppress(EOFError):  # there is no second frame
                    image.seek(1)
                    return "moving"
            return "still"
    except Image.DecompressionBombError:
        return "still"  # `decode_image` refuses it
    except DAMAGE:
        # The next decoder that opens the file reports the damage.
        return "still" if is_heif(file) else None


@contextmanager
def open_picture(file: MediaFile, settings: MediaSettings) -> Iterator[Image.Image]:
    """Opens a picture and reads its header.

    Our own limit on pixels replaces Pillow's warning. Pillow's hard limit (179 million pixels) still applies.

    Raises:
        MediaError: A WebP file has too many pixels.
    """
    size = canvas(file.head(30))
    if size is not None:
        check_image_pixels(file.path, size[0] * size[1], settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(file.reader(), formats=FORMATS) as image:
            yield image


def read_image(file: MediaFile, ref: MediaRef, settings: MediaSettings, own: OwnSizes | None = None) -> DecodedImage:
    """Reads a picture, or the first frame of a moving one, turned upright by its EXIF orientation and put over white.

    Where keys say how large pictures are shown, it is resized by these and a model's own sizes, if they are given.

    Raises:
        MediaError: The file cannot be decoded completely, is too large, the manifest gives it a time span, or no size
            will do.
    """
    if ref.start_s is not None or ref.end_s is not None:
        raise MediaError(f"{file.path}: span {ref.start_s}..{ref.end_s} s, but an image has no time; remove start/end")
    return sized_image(file.path, _read(file, settings), settings, own)


decode_image = of_path(read_image)


def _read(file: MediaFile, settings: MediaSettings) -> DecodedImage:
    if is_heif(file):
        return DecodedImage(pixels=decode_heif(file, settings))
    try:
        with open_picture(file, settings) as image:
            check_image_pixels(file.path, image.width * image.height, settings)
            image.load()
            return DecodedImage(
                pixels=np.array(rgb(ImageOps.exif_transpose(image))),
                warnings=missing_end(file) if image.format == "GIF" else (),
            )
    except Image.DecompressionBombError as error:
        raise MediaError(f"{file.path}: {error}; scale the image down") from error
    except DAMAGE as error:
        raise MediaError(
            f"{file.path}: image cannot be decoded ({in_words(error)}); save it anew or remove the sample"
        ) from error


def in_words(error: Exception) -> str:
    """The message of a Pillow error; for unknown formats Pillow's own message would name our reader, not the file."""
    return "cannot identify image file" if isinstance(error, UnidentifiedImageError) else str(error)


def rgb(image: Image.Image) -> Image.Image:
    """Converts a picture to RGB; transparent parts show a white background."""
    if image.mode.startswith("I"):  # 16 bits per pixel; Pillow's own conversion would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
