"""Pictures as upright RGB pixels, decoded by Pillow after the limits are checked on the header alone."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lightning_mmrl.errors import MediaError
from lightning_mmrl.types.media import DecodedImage, MediaSettings
from lightning_mmrl.types.records import MediaRef

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is opened at all: Pillow would hand some others (EPS) to foreign programs. JPEG includes phones' MPO."""

# What Pillow's readers raise for damaged files; UnidentifiedImageError and truncation are OSErrors.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


def decode_image(path: Path, ref: MediaRef, settings: MediaSettings) -> DecodedImage:
    """The picture, turned upright by its EXIF orientation, its transparency over white; the first frame if it moves.

    Raises:
        MediaError: The file cannot be decoded completely, is too large, or the manifest gives it a time span.
    """
    if ref.start_s is not None or ref.end_s is not None:
        raise MediaError(f"{path}: span {ref.start_s}..{ref.end_s} s, but an image has no time; remove start/end")
    try:
        with warnings.catch_warnings():
            # Our own limit decides, not Pillow's warning. Pillow's hard limit (179 million pixels) stays.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                _check_pixels(path, image.width * image.height, settings)
                image.load()
                return DecodedImage(pixels=np.array(_rgb(ImageOps.exif_transpose(image))))
    except Image.DecompressionBombError as error:
        raise MediaError(f"{path}: {error}; scale the image down") from error
    except _DAMAGE as error:
        raise MediaError(f"{path}: image cannot be decoded ({error}); save it anew or remove the sample") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits per pixel; Pillow's own conversion would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _check_pixels(path: Path, pixels: int, settings: MediaSettings) -> None:
    if pixels > settings.max_pixels:
        raise MediaError(f"{path}: {pixels} pixels exceed media.max_pixels {settings.max_pixels}; scale the image down")
