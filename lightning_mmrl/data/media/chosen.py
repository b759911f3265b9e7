"""Takes the chosen frames out of those that a decoder delivers, in RGB, upright and of one size."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from lightning_mmrl.data.media.selection import check_pixels
from lightning_mmrl.data.media.sizing import FrameStack
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import OwnSizes


class ChosenFrames:
    """The chosen frames of a clip; they get the size of the first frame that is offered.

    They are written straight into the result: a list of frames, stacked at the end, would need twice the memory.

    Args:
        path: The clip's file, for messages.
        wanted: Index of each chosen frame in display order; one may be chosen several times.
        settings: Limits, and keys that say how large frames are shown.
        own: The model's own sizes; None leaves frames as they are.
    """

    def __init__(self, path: Path, wanted: Sequence[int], settings: MediaSettings, own: OwnSizes | None) -> None:
        self.stack = FrameStack(path, len(wanted), settings, own)
        self._path, self._settings = path, settings
        self._wanted, self._missing = wanted, set(wanted)
        self._size: tuple[int, int] | None = None
        # One reformatter for all frames: setting one up takes longer than decoding a small frame.
        self._reformatter = VideoReformatter()

    def offer(self, index: int, frame: VideoFrame) -> None:
        """Takes a frame if it is chosen.

        Raises:
            MediaError: The frame has too many pixels, or no size will do.
        """
        check_pixels(self._path, frame.width * frame.height, self._settings)
        width, height = self._size = self._size or (frame.width, frame.height)
        if index in self._missing:
            self._missing.remove(index)
            pixels = self._reformatter.reformat(frame, width=width, height=height, format="rgb24").to_ndarray()
            upright = np.rot90(pixels, k=round(frame.rotation / 90))  # mirroring is ignored
            self.stack.put(places(self._wanted, index), upright)

    @property
    def complete(self) -> bool:
        """Whether any frames are chosen, and all of them were offered."""
        return bool(self._wanted) and not self._missing


def places(indices: Sequence[int], index: int) -> list[int]:
    """Where a frame stands among the chosen ones."""
    return [place for place, each in enumerate(indices) if each == index]
