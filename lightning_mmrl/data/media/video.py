"""Frames of a clip by time: decord by default, PyAV where decord is missing or cannot open the file."""

import platform
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from lightning_mmrl.errors import MediaError
from lightning_mmrl.types.media import DecodedVideo, MediaSettings
from lightning_mmrl.types.records import MediaRef

_STILL_S = 0.04
"""What a clip of a single frame lasts."""

_CLOCK_S = 1e-3
"""A frame that starts this close to a chosen time counts as begun, so that rounding does not decide."""

HAS_DECORD = platform.system() == "Linux" and platform.machine() == "x86_64"


def decode_video(path: Path, ref: MediaRef, settings: MediaSettings) -> DecodedVideo:
    """`num_frames` frames at the middles of equal segments of the span, upright; short clips repeat frames.

    Raises:
        MediaError: The file cannot be decoded, is too large, too long, or its span is empty.
    """
    if not HAS_DECORD or _is_turned(path):
        return decode_pyav(path, ref, settings)
    import decord

    try:
        return decode_decord(path, ref, settings)
    except (decord.DECORDError, RuntimeError, IndexError):
        # decord's FFmpeg is of 2021 and knows no AV1; PyAV's message is the one to show if it fails too.
        return decode_pyav(path, ref, settings)


def _is_turned(path: Path) -> bool:
    """Whether the container says that frames must be turned, as phones write it.

    decord turns those of an mp4 file and not those of a Matroska file; PyAV turns none, so that we can.
    """
    try:
        with av.open(str(path)) as container:
            return any(frame.rotation for frame in islice(container.decode(video=0), 1))
    except (FFmpegError, ValueError, IndexError, OSError):
        return False  # what is wrong with the file is for the decoders to say


def decode_decord(path: Path, ref: MediaRef, settings: MediaSettings) -> DecodedVideo:
    import decord

    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    height, width = reader[0].shape[:2]
    _check_pixels(path, height * width, settings)
    starts = reader.get_frame_timestamp(list(range(len(reader))))[:, 0].astype(np.float64)
    chosen, times, duration = _choose(path, starts, ref, settings)
    return DecodedVideo(frames=reader.get_batch(chosen).asnumpy(), timestamps_s=times, duration_s=duration)


def decode_pyav(path: Path, ref: MediaRef, settings: MediaSettings) -> DecodedVideo:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path}: no video track; remove the <video> tag or give another file")
            stream = container.streams.video[0]
            _check_pixels(path, stream.width * stream.height, settings)
            _check_duration(path, float(container.duration or 0) / av.time_base, settings)
            chosen, times, duration = _choose(path, _frame_times(container), ref, settings)
        with av.open(str(path)) as container:
            images = _images(container, chosen)
    except (FFmpegError, ValueError, OSError) as error:
        raise MediaError(f"{path}: video cannot be decoded ({error}); re-encode or remove the clip") from error
    return DecodedVideo(frames=images, timestamps_s=times, duration_s=duration)


def _frame_times(container: InputContainer) -> np.ndarray:
    """Start of each frame; no frame is kept, a long clip would not fit into memory."""
    return np.array([frame.time for frame in container.decode(video=0) if frame.time is not None], dtype=np.float64)


def _images(container: InputContainer, chosen: Sequence[int]) -> np.ndarray:
    """The chosen frames as [T, H, W, 3]; indices count the frames that have a time."""
    timed = (frame for frame in container.decode(video=0) if frame.time is not None)
    wanted, until = set(chosen), max(chosen) + 1
    numbered = enumerate(islice(timed, until))
    images = {index: _upright(frame) for index, frame in numbered if index in wanted}
    return np.stack([images[index] for index in chosen])


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """[H, W, 3], turned to the nearest quarter of what the display matrix says; its mirroring is ignored."""
    return np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))


def _choose(
    path: Path, starts: np.ndarray, ref: MediaRef, settings: MediaSettings
) -> tuple[Sequence[int], tuple[float, ...], float]:
    """Frame indices on show at the middles of `num_frames` equal segments, their times, and the span's length.

    Times count from the first frame; a container may start its clock anywhere. The last frame lasts as long as the
    average one: demuxers disagree on what the container says of it.
    """
    if not len(starts):
        raise MediaError(f"{path}: video has no frames; re-encode or remove the clip")
    starts = np.round(starts - starts[0], 4)  # decord's clock is float32
    end = float(starts[-1]) * len(starts) / (len(starts) - 1) if len(starts) > 1 else _STILL_S
    _check_duration(path, end, settings)
    first, last = ref.start_s or 0.0, end if ref.end_s is None else min(end, ref.end_s)
    if last <= first:
        raise MediaError(f"{path}: span {ref.start_s}..{ref.end_s} s is empty in a clip of {end:.2f} s; fix start/end")
    duration = last - first
    times = first + (np.arange(settings.num_frames) + 0.5) * duration / settings.num_frames
    indices = np.searchsorted(starts, times + _CLOCK_S, side="right") - 1
    return indices.tolist(), tuple(float(starts[index]) for index in indices), duration


def _check_pixels(path: Path, pixels: int, settings: MediaSettings) -> None:
    if pixels > settings.max_pixels:
        raise MediaError(
            f"{path}: frames of {pixels} pixels exceed media.max_pixels {settings.max_pixels}; scale the clip down"
        )


def _check_duration(path: Path, seconds: float, settings: MediaSettings) -> None:
    if seconds > settings.max_duration_s:
        limit = settings.max_duration_s
        raise MediaError(f"{path}: {seconds:.1f} s exceed media.max_duration_s {limit:g}; cut the clip")
