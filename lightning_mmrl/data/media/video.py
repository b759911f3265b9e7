"""Reads frames of a clip by time on the container's clock, with decord where that is proven right, else with PyAV."""

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from lightning_mmrl.data.media.boxes import is_plain_mp4
from lightning_mmrl.data.media.chosen import ChosenFrames, places
from lightning_mmrl.data.media.containers import open_container
from lightning_mmrl.data.media.image import identify
from lightning_mmrl.data.media.moving import read_moving
from lightning_mmrl.data.media.opened import MediaFile, of_path
from lightning_mmrl.data.media.seeking import LARGEST_SHARE, FrameIndex, FrameIndexer, plan_runs, read_runs
from lightning_mmrl.data.media.selection import (
    Selection,
    check_duration,
    check_order,
    check_pixels,
    clip_end_s,
    frames_taken,
    select_frames,
)
from lightning_mmrl.data.media.sizing import FrameStack
from lightning_mmrl.data.media.tracks import MP4, Pass, Tracks, edit_lag_s, find_tracks, in_seconds, shortfall
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import DecodedVideo, OwnSizes
from lightning_mmrl.types.records import MediaRef

HAS_DECORD = platform.system() == "Linux" and platform.machine() == "x86_64"

_NO_DISPLAY_TIMES = frozenset({"avi", "mpegvideo"})
"""Containers that do not store when a frame is shown; some store when the frame is decoded."""

_DECORD_PIXELS = 4096 * 2304
"""decord keeps about 13 converted frames besides the ones it returns; larger frames would not fit into a worker."""

_NAL_LENGTH = 4
_IDR_SLICE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """Properties of a file's video track, from its packets and its first frame.

    Attributes:
        format: FFmpeg's name of the container.
        pixels: Pixels of a frame.
        starts_s: Start of each packet that is shown, sorted, on the container's clock.
        lag_s: Delay of the frames relative to the times that FFmpeg reports (see `edit_lag_s`); `starts_s` already
            includes it.
        simple: True if the track is H.264 with four-byte lengths (see `_has_long_lengths`), no two packets are shown at
            the same time, and decoding can start at every key frame.
        only_track: True if no other track holds pictures.
        rotation: Degrees by which the display matrix turns frames.
        rate: Average number of frames per second, used where the container has no times.
        promised_s: Duration that the track should have.
        index: Where its frames lie; None if it must be decoded whole.
    """

    format: str
    pixels: int
    starts_s: np.ndarray
    lag_s: float
    simple: bool
    only_track: bool
    rotation: int
    rate: float
    promised_s: float
    index: FrameIndex | None


def read_video(file: MediaFile, ref: MediaRef, settings: MediaSettings, own: OwnSizes | None = None) -> DecodedVideo:
    """Reads upright frames of the span, chosen as `select_frames` says.

    Timestamps count from the container's zero, see tracks.py. Animated GIF, APNG, WebP and AVIF are clips as well.
    Where keys say how large frames are shown, they are resized by these and a model's own sizes, if they are given.

    Raises:
        MediaError: The file cannot be decoded, is too large, too long, its span is empty, or no size will do.
    """
    path = file.path
    picture = identify(file, settings)
    if picture == "moving":
        return read_moving(file, ref, settings, own)
    if picture == "still":
        raise MediaError(f"{path}: no video track, it holds a still picture; use an <image> tag or give another file")
    outline = outline_of(file, settings)
    if not (HAS_DECORD and outline.pixels <= _DECORD_PIXELS and is_safe_for_decord(outline) and is_plain_mp4(file)):
        return _by_pyav(file, outline, ref, settings, own)
    import decord

    try:
        return _by_decord(file, outline, ref, settings, own)
    except (decord.DECORDError, RuntimeError, IndexError, MemoryError):
        # decord's thread reads ahead. By chance it meets a damaged packet behind the chosen frames first, and fails.
        # PyAV stops behind the chosen frames, so its outcome is the same each time. Its message is for the user.
        return _by_pyav(file, outline, ref, settings, own, largest_share=1.0)


decode_video = of_path(read_video)


def is_safe_for_decord(outline: Outline) -> bool:
    """Whether decord returns the right frames of a file; tools/truth/frame_truth.py tests this rule.

    decord supplies only the pictures; their times are read from the packets.

    decord is right only for H.264 in MP4 that is `simple`, has an `index` and is not rotated. In other files it shows
    frames that an edit list cuts off. Packets that are not what H.264 says fail only now and then. It returns wrong
    frames where other codecs (MPEG-4, MPEG-2, HEVC) have B-frames, where key frames need earlier frames, and in
    MPEG-TS, MPEG-PS and WMV. It rotates frames in some containers only, and it cannot decode AV1: its FFmpeg dates
    from 2021.
    """
    plain = outline.simple and outline.index is not None and outline.rotation == 0
    return outline.format == MP4 and outline.only_track and plain


@of_path
def decode_decord(file: MediaFile, ref: MediaRef, settings: MediaSettings) -> DecodedVideo:
    """Decodes a clip with decord, whether or not that is safe for it."""
    return _by_decord(file, outline_of(file, settings), ref, settings, None)


@of_path
def decode_pyav(file: MediaFile, ref: MediaRef, settings: MediaSettings) -> DecodedVideo:
    """Decodes a clip with PyAV."""
    return _by_pyav(file, outline_of(file, settings), ref, settings, None)


def outline_of(file: MediaFile, settings: MediaSettings) -> Outline:
    """Reads all packets and decodes one frame.

    Raises:
        MediaError: The file cannot be read, has no video track, or exceeds a limit.
    """
    path = file.path
    with _named(path), open_container(file, settings, "video") as container:
        tracks = find_tracks(file, container)
        stream = _pictures(path, tracks)
        check_pixels(path, stream.width * stream.height, settings)
        reading, rotation = Pass(file, container, tracks), None
        indexer = FrameIndexer(stream)
        times: list[int] = []
        first_shown: Packet | None = None
        simple, cut = stream.codec_context.name == "h264" and _has_long_lengths(stream.codec_context.extradata), False
        for packet in reading.packets():
            if packet.stream_index != stream.index:
                continue
            indexer.add(packet)
            time = packet.dts if tracks.format in _NO_DISPLAY_TIMES else packet.pts
            cut = cut or packet.is_discard
            if time is None or packet.is_discard:
                simple = False
                continue
            simple = simple and (_is_closed(packet) if packet.is_keyframe else bool(times))
            times.append(time)
            first_shown = first_shown or packet
            if simple and rotation is None:
                rotation = next((frame.rotation for frame in packet.decode()), None)
        if simple and rotation is None:  # the clip is shorter than its decoder's delay
            rotation = next((frame.rotation for frame in stream.decode(None)), None)
        lag_s = (
            edit_lag_s(file, settings, first_shown) if cut and tracks.format == MP4 and first_shown is not None else 0.0
        )
        tick_s = in_seconds(1, stream.time_base)
        starts_s = np.sort(np.array(times, dtype=np.float64)) * tick_s - tracks.zero_s + lag_s
        if times:
            check_duration(path, float(starts_s[-1]), settings)
        return Outline(
            format=tracks.format,
            pixels=stream.width * stream.height,
            starts_s=starts_s,
            lag_s=lag_s,
            simple=simple and 0 < len(times) == len(set(times)),
            only_track=tracks.num_video == 1,
            rotation=rotation or 0,
            rate=float(stream.average_rate or stream.guessed_rate or 25),
            promised_s=reading.promised_s(stream),
            index=None if tracks.format in _NO_DISPLAY_TIMES else indexer.index(tracks.zero_s),
        )


read_outline = of_path(outline_of)


def _has_long_lengths(extradata: bytes | None) -> bool:
    """Whether a four-byte length precedes each unit of an H.264 packet, as in nearly all MP4 files.

    Other sizes are allowed (ISO/IEC 14496-15, 5.3.3.1: lengthSizeMinusOne); PyAV decodes those files.
    """
    return extradata is not None and len(extradata) > 4 and extradata[0] == 1 and extradata[4] & 3 == _NAL_LENGTH - 1


def _is_closed(packet: Packet) -> bool:
    """Whether an H.264 packet holds a slice of an IDR picture, which is decoded without any earlier picture.

    A key frame that is not an IDR picture is only a recovery point: the pictures after it become right gradually
    (ITU-T H.264, D.2.8). The units of the packet must have four-byte lengths, see `_has_long_lengths`.
    """
    content, at = bytes(packet), 0
    while at + _NAL_LENGTH < len(content):
        if content[at + _NAL_LENGTH] & 0x1F == _IDR_SLICE:
            return True
        at += _NAL_LENGTH + int.from_bytes(content[at : at + _NAL_LENGTH], "big")
    return False


def _by_decord(
    file: MediaFile, outline: Outline, ref: MediaRef, settings: MediaSettings, own: OwnSizes | None
) -> DecodedVideo:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    path = file.path
    # This name leads to the open file, even if another file has the original name by now.
    reader = decord.VideoReader(f"/proc/self/fd/{file.descriptor}", ctx=decord.cpu(0), num_threads=1)
    if len(reader) != len(outline.starts_s):
        raise IndexError(f"decord finds {len(reader)} frames of {len(outline.starts_s)}")
    chosen = select_frames(path, outline.starts_s, ref, settings, outline.rate)
    stack = FrameStack(path, len(chosen.indices), settings, own)
    # Each frame is read once and written into the result, so that at most one extra frame is in memory.
    for index in dict.fromkeys(chosen.indices):
        stack.put(places(chosen.indices, index), reader[index].asnumpy())
    return _clip(file, outline, chosen, stack)


def _by_pyav(
    file: MediaFile,
    outline: Outline,
    ref: MediaRef,
    settings: MediaSettings,
    own: OwnSizes | None,
    largest_share: float = LARGEST_SHARE,
) -> DecodedVideo:
    """Decodes what the chosen frames need if that is at most a share of the packets, or else all.

    Decodes all once and keeps the frames chosen by packet times; decodes again if frame times lead to another choice.
    Keeping all frames would need too much memory for a long clip.
    """
    path = file.path
    if outline.index is not None:
        chosen = select_frames(path, outline.index.starts_s, ref, settings, outline.rate)
        stack = _read_parts(file, outline.index, chosen.indices, settings, own, largest_share)
        if stack is not None:
            return _clip(file, outline, chosen, stack)
    expected: Sequence[int] = ()
    if len(outline.starts_s):
        end_s = clip_end_s(outline.starts_s)
        last_s = end_s if ref.end_s is None else min(ref.end_s, end_s)
        expected, _ = frames_taken(outline.starts_s, (ref.start_s or 0.0, last_s), ref, settings, outline.rate)
    times, stack = _read_frames(file, expected, settings, own)
    chosen = select_frames(path, _starts_s(times, outline), ref, settings, outline.rate)
    if stack is None or chosen.indices != tuple(expected):
        del stack  # otherwise both sets would be in memory at once
        _, stack = _read_frames(file, chosen.indices, settings, own)
    if stack is None:
        raise MediaError(f"{path}: video cannot be decoded (frames get lost); re-encode or remove the clip")
    return _clip(file, outline, chosen, stack)


def _read_parts(
    file: MediaFile,
    index: FrameIndex,
    wanted: Sequence[int],
    settings: MediaSettings,
    own: OwnSizes | None,
    largest_share: float,
) -> FrameStack | None:
    """Returns the wanted frames, or None if the clip must be decoded whole, see seeking.py."""
    if (runs := plan_runs(index, wanted, largest_share)) is None:
        return None
    frames = ChosenFrames(file.path, wanted, settings, own)
    with open_container(file, settings, "video") as container:
        stream = _pictures(file.path, find_tracks(file, container))
        return frames.stack if read_runs(container, stream, index, runs, frames) else None


def _clip(file: MediaFile, outline: Outline, chosen: Selection, stack: FrameStack) -> DecodedVideo:
    late = shortfall(file.path, outline.promised_s, chosen.end_s)
    return DecodedVideo(
        frames=stack.frames,
        timestamps_s=chosen.timestamps_s,
        duration_s=chosen.duration_s,
        resized_from=stack.resized_from,
        warnings=(*chosen.warnings, *late, *stack.warnings),
    )


def _read_frames(
    file: MediaFile, wanted: Sequence[int], settings: MediaSettings, own: OwnSizes | None
) -> tuple[list[float | None], FrameStack | None]:
    """Returns the times of all frames on the container's clock, and the wanted frames.

    The wanted frames are None if the clip ends before the last of them.
    """
    path = file.path
    times: list[float | None] = []
    latest_s = 0.0
    frames = ChosenFrames(path, wanted, settings, own)
    with _named(path), open_container(file, settings, "video") as container:
        tracks = find_tracks(file, container)
        stream = _pictures(path, tracks)
        reading = Pass(file, container, tracks)
        for index, frame in enumerate(reading.frames(stream)):
            times.append(reading.time_s(frame, stream))
            check_duration(path, times[-1] or 0.0, settings)
            if times[-1] is not None:
                check_order(path, latest_s, times[-1])
                latest_s = max(latest_s, times[-1])
            frames.offer(index, frame)
    return times, frames.stack if frames.complete else None


def _starts_s(times: Sequence[float | None], outline: Outline) -> np.ndarray:
    """Start of each frame, in display order.

    If frames have no times (AVI, raw streams), the n-th frame gets the n-th packet time. If there are fewer packet
    times than frames, the remaining frames follow at the average rate.
    """
    known = [time for time in times if time is not None]
    if outline.format not in _NO_DISPLAY_TIMES and len(known) == len(times) and known == sorted(known):
        return np.array(known, dtype=np.float64) + outline.lag_s
    ranked = outline.starts_s[: len(times)]
    first_s = ranked[-1] + 1 / outline.rate if len(ranked) else 0.0
    return np.concatenate([ranked, first_s + np.arange(len(times) - len(ranked)) / outline.rate])


def _pictures(path: Path, tracks: Tracks) -> VideoStream:
    if tracks.video is None:
        raise MediaError(f"{path}: no video track; remove the <video> tag or give another file")
    return tracks.video


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns an exception of FFmpeg into an error that names the file."""
    try:
        yield
    except MemoryError:
        raise
    except (FFmpegError, ValueError, OSError) as error:
        raise MediaError(f"{path}: video cannot be decoded ({error}); re-encode or remove the clip") from error
