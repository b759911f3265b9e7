"""A container's tracks, its clock and its packets, found by its content; no frame is decoded here.

**The clock.** Picture and sound of a file count from one zero: the earliest start of its tracks, in the order of
presentation. FFmpeg and players do the same: edit lists are applied, encoder delay is skipped, and the offset that
MPEG-TS and MPEG-PS start with is subtracted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import overload

from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from lightning_mmrl.data.media.containers import open_container
from lightning_mmrl.data.media.declared_size import whole_s
from lightning_mmrl.data.media.opened import MediaFile
from lightning_mmrl.data.media.selection import CUT_OFF
from lightning_mmrl.settings.data import MediaSettings

MICROSECONDS = 1_000_000
"""FFmpeg's unit for the duration of a container."""

MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
"""FFmpeg's name of the MP4 family."""

_DECLARING = frozenset({MP4, "matroska,webm", "avi", "flv", "asf", "flac", "aiff", "caf", "au"})
"""Formats whose header says how long the file is; for the others FFmpeg guesses from the bit rate or reads the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracks:
    """The tracks of an open container that are used: the first with pictures that is no cover, the first with sound.

    `zero_s` is the container's time that counts as 0; `declared_s` the length that its header promises, if it does.
    """

    format: str
    zero_s: float
    declared_s: float | None
    num_video: int
    video: VideoStream | None
    sound: AudioStream | None

    @property
    def used(self) -> list[VideoStream | AudioStream]:
        """Both tracks, as far as there are any."""
        return [track for track in (self.video, self.sound) if track is not None]


def find_tracks(file: MediaFile, container: InputContainer) -> Tracks:
    """Tracks and clock of a file that is open as a container."""
    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    sounds = container.streams.audio
    starts = [
        in_seconds(stream.start_time, stream.time_base)
        for stream in (*videos, *sounds)
        if stream.start_time is not None
    ]
    name = file.container or container.format.name
    duration = container.duration if name in _DECLARING else None
    return Tracks(
        format=name,
        zero_s=min(starts, default=0.0),
        declared_s=duration / MICROSECONDS if duration is not None else None,
        num_video=len(videos),
        video=videos[0] if videos else None,
        sound=sounds[0] if sounds else None,
    )


def in_seconds(ticks: int, time_base: Fraction | None) -> float:
    """A time in the unit of a stream or packet; each that comes from a file has one."""
    assert time_base is not None
    return float(ticks * time_base)


class Pass:
    """One pass through a container, up to its end or to where it breaks off.

    Attributes:
        reach_s: Where the packets of each track end that were read so far, on the container's clock, by track index.
    """

    def __init__(self, file: MediaFile, container: InputContainer, tracks: Tracks) -> None:
        self._file = file
        self._container = container
        self._tracks = tracks
        self.reach_s = {track.index: 0.0 for track in tracks.used}

    def packets(self) -> Iterator[Packet]:
        """The packets of both tracks; half of a download ends where it breaks off."""
        num = 0
        try:
            for packet in self._container.demux(self._tracks.used):
                if packet.size:
                    num += 1
                    self._note(packet)
                    yield packet
        except FFmpegError as error:
            if not num or isinstance(error, MemoryError):
                raise

    @overload
    def frames(self, track: VideoStream) -> Iterator[VideoFrame]: ...

    @overload
    def frames(self, track: AudioStream) -> Iterator[AudioFrame]: ...

    def frames(self, track: VideoStream | AudioStream) -> Iterator[VideoFrame | AudioFrame]:
        """The frames of a track in the order of presentation.

        A recording may start between key frames and end within a packet; an error anywhere else is raised.
        """
        num, broken = 0, None
        for packet in self.packets():
            if packet.stream_index != track.index:
                continue
            if broken is not None:
                raise broken
            try:
                frames = track.decode(packet)
            except FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                if num or packet.is_keyframe:
                    broken = error
                continue
            num += len(frames)
            yield from frames
        if broken is not None and not num:
            raise broken
        yield from track.decode(None)

    def time_s(self, frame: VideoFrame | AudioFrame, track: VideoStream | AudioStream) -> float | None:
        """When a frame is first on show or heard, on the container's clock.

        `frame.time` is of no use: PyAV gives the last frames of a decoder another time base.
        """
        return None if frame.pts is None else in_seconds(frame.pts, track.time_base) - self._tracks.zero_s

    def promised_s(self, track: VideoStream | AudioStream) -> float:
        """How long a track should be: as its packets say, or, of a file that is cut off, as the header says."""
        declared_s, own_s = self._tracks.declared_s, self.reach_s[track.index]
        if declared_s is not None and _far_less(max(self.reach_s.values()), declared_s):
            return declared_s
        return whole_s(self._file, own_s)

    def _note(self, packet: Packet) -> None:
        start = packet.pts if packet.pts is not None else packet.dts
        if start is not None and not packet.is_discard:
            end_s = in_seconds(start + (packet.duration or 0), packet.time_base) - self._tracks.zero_s
            self.reach_s[packet.stream_index] = max(self.reach_s[packet.stream_index], end_s)


def edit_lag_s(file: MediaFile, settings: MediaSettings, first: Packet) -> float:
    """By how much too early FFmpeg shows the pictures of a cut MP4 file.

    Where an edit list begins within a frame, FFmpeg leaves that frame out and starts the next one at the edit's start,
    up to a frame before its time. Its older reading of edit lists (`advanced_editlist=0`) only moves pictures by the
    edit's start, to the right time.

    Args:
        file: The file.
        settings: The limit on pixels.
        first: The first packet that is shown, as FFmpeg reads it by default.
    """
    if first.pts is None or first.pos is None:
        return 0.0
    with open_container(file, settings, advanced_editlist="0") as container:
        for packet in container.demux(container.streams[first.stream_index]):
            if packet.pos == first.pos and packet.pts is not None:
                lag_s = in_seconds(packet.pts - first.pts, packet.time_base)
                longest_s = in_seconds(first.duration or 0, packet.time_base)
                # With several edits the older reading is another one altogether.
                return lag_s if 0 < lag_s < longest_s else 0.0
    return 0.0


def shortfall(path: Path, promised_s: float, decoded_s: float) -> tuple[str, ...]:
    """A warning where far less was decoded than the file promises."""
    if not _far_less(decoded_s, promised_s):
        return ()
    return (f"{path}: {decoded_s:.2f} s were decoded of {promised_s:.2f} s that the file declares; {CUT_OFF}",)


def _far_less(found_s: float, promised_s: float) -> bool:
    """A tenth less, and more than 0.1 s: headers round, and encoders count their delay in."""
    return promised_s - found_s > max(0.1, 0.1 * promised_s)
