"""Resizes decoded pictures and frames to the size in which the model sees them, where keys of `data.media` say so.

Workers resize, so that only small frames are kept and sent: a clip of many large frames would take more memory than a
worker may have. The filter is Pillow's bicubic one, with which qwen-vl-utils resizes pictures. It resizes clips with
torchvision's, which differs by a level of 255 here and there.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_mmrl.data.media.sizes import FRAME_FACTOR, frame_bounds, image_bounds, smart_resize
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import DecodedImage, OwnSizes


def sized_image(path: Path, image: DecodedImage, settings: MediaSettings, own: OwnSizes | None) -> DecodedImage:
    """The picture in the size that the keys give it, or as it is if no key is about pictures.

    Raises:
        MediaError: No size will do.
    """
    if own is None or not settings.sizes_images:
        return image
    height, width = image.pixels.shape[:2]
    size = _shown_size(path, (height, width), own, image_bounds(settings, own))
    return DecodedImage(pixels=_resized(image.pixels, size), resized_from=(height, width), warnings=image.warnings)


class FrameStack:
    """The chosen frames of a clip, all of one size.

    Attributes:
        resized_from: Height and width in the file, if the frames get the size in which the model sees them.

    Args:
        path: The clip's file, for messages.
        number: Number of frames.
        settings: Keys that say how large frames are shown.
        own: The model's own sizes; None leaves frames as they are.
    """

    def __init__(self, path: Path, number: int, settings: MediaSettings, own: OwnSizes | None) -> None:
        self._path, self._number, self._settings = path, number, settings
        self._own = own if settings.sizes_frames else None
        self._frames: np.ndarray | None = None
        self._size = (0, 0)
        self.resized_from: tuple[int, int] | None = None

    def put(self, places: Sequence[int], pixels: np.ndarray) -> None:
        """Writes a frame [H, W, 3] to some places.

        Raises:
            MediaError: No size will do.
        """
        if self._own is not None:
            if self.resized_from is None:
                self.resized_from = (pixels.shape[0], pixels.shape[1])
                bounds = frame_bounds(self._number, self._settings, self._own)
                self._size = _shown_size(self._path, self.resized_from, self._own, bounds)
            pixels = _resized(pixels, self._size)
        if self._frames is None:
            self._frames = np.empty((self._number, *pixels.shape), dtype=pixels.dtype)
        self._frames[list(places)] = pixels

    @property
    def frames(self) -> np.ndarray:
        """All frames [T, H, W, 3]; each place must have been written."""
        assert self._frames is not None
        return self._frames

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence if the frames have more pixels than they should share."""
        total, pairs = self._settings.total_pixels, -(-self._number // FRAME_FACTOR)
        height, width = self._size
        if total is None or pairs * height * width <= total:
            return ()
        return (
            f"{self._path}: {self._number} frames of {width} x {height} pixels, the fewest by min_frame_pixels, exceed "
            f"data.media.total_pixels {total}; lower min_frame_pixels or the number of frames",
        )


def _shown_size(path: Path, size: tuple[int, int], own: OwnSizes, bounds: tuple[float, float]) -> tuple[int, int]:
    try:
        return smart_resize(*size, own.factor, *bounds)
    except MediaError as error:
        raise MediaError(f"{path}: {error}") from error


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels [H, W, 3] as [height, width, 3]."""
    height, width = size
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))
