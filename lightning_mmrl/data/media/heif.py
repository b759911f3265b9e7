"""Reads HEIC pictures, which phones take: FFmpeg decodes the tiles, and this module joins and rotates them.

FFmpeg can join the tiles as well, but PyAV does not expose that. Pillow cannot read HEIC.
"""

from collections import Counter
from pathlib import Path

import numpy as np
from av.error import FFmpegError
from av.video.stream import VideoStream

from lightning_mmrl.data.media.containers import open_container
from lightning_mmrl.data.media.heif_items import Shown, read_shown
from lightning_mmrl.data.media.opened import MediaFile
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings

_STICKING_OUT = 4
"""Tiles may cover at most this many times the allowed pixels: in each direction, a grid of two or more tiles is less
than twice as long as the picture that it shows."""


def decode_heif(file: MediaFile, settings: MediaSettings) -> np.ndarray:
    """Decodes the primary picture, uint8 [H, W, 3], upright; transparency, thumbnails and depth are ignored.

    Raises:
        MediaError: The file cannot be decoded or has too many pixels.
    """
    try:
        shown = read_shown(file)
        if shown.size is not None:
            check_image_pixels(file.path, shown.size[0] * shown.size[1], settings)
        tiles = _tiles(file, shown, settings)
        rows = [np.concatenate(tiles[at : at + shown.columns], axis=1) for at in range(0, len(tiles), shown.columns)]
        pixels = np.concatenate(rows, axis=0)
    except MemoryError:
        raise
    except (FFmpegError, ValueError, OSError) as error:
        raise MediaError(
            f"{file.path}: image cannot be decoded ({error}); save it anew or remove the sample"
        ) from error
    if shown.size is not None:
        pixels = pixels[: shown.size[1], : shown.size[0]]  # the last tiles may stick out
    for kind, value in shown.turns:
        pixels = np.rot90(pixels, k=value) if kind == "irot" else np.flip(pixels, axis=value)
    return np.ascontiguousarray(pixels)


def check_image_pixels(path: Path, pixels: int, settings: MediaSettings) -> None:
    """Raises a `MediaError` if a picture has too many pixels."""
    if pixels > settings.max_pixels:
        raise MediaError(f"{path}: {pixels} pixels exceed media.max_pixels {settings.max_pixels}; scale the image down")


def _tiles(file: MediaFile, shown: Shown, settings: MediaSettings) -> list[np.ndarray]:
    wanted = set(shown.tiles)
    pixels: dict[int, np.ndarray] = {}
    with open_container(file, settings, "image") as container:
        streams: dict[int, VideoStream] = {
            stream.index: stream for stream in container.streams.video if stream.id in wanted
        }
        for stream in streams.values():
            check_image_pixels(file.path, stream.width * stream.height, settings)
        shared = Counter(shown.tiles)
        covered = sum(shared[stream.id] * stream.width * stream.height for stream in streams.values())
        check_image_pixels(file.path, covered // _STICKING_OUT, settings)
        for packet in container.demux():
            stream = streams.get(packet.stream_index)
            if stream is not None and packet.size and stream.id not in pixels:
                for frame in [*stream.decode(packet), *stream.decode(None)][:1]:
                    pixels[stream.id] = frame.to_ndarray(format="rgb24")
    if pixels.keys() != wanted:
        raise ValueError(f"{len(wanted - pixels.keys())} of its {len(wanted)} tiles are missing")
    return [pixels[tile] for tile in shown.tiles]
