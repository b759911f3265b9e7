"""The tracks, the clock and the packets of a container.

**The clock.** Picture and sound of a file share one zero: the earliest presentation time of any of its tracks. FFmpeg
and players do the same: they apply edit lists, skip encoder delay, and subtract the offset at which MPEG-TS and
MPEG-PS start.
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

from lightning_mmrl.data.media.containers import open_container, packets_of
from lightning_mmrl.data.media.declared_size import whole_s
from lightning_mmrl.data.media.opened import MediaFile
from lightning_mmrl.data.media.selection import CUT_OFF
from lightning_mmrl.settings.data import MediaSettings

MICROSECONDS = 1_000_000
"""FFmpeg's unit for the duration of a container."""

MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
"""FFmpeg's name of the MP4 family."""

_DECLARING = frozenset({MP4, "matroska,webm", "avi", "flv", "asf", "flac", "aiff", "caf", "au"})
"""Formats whose header declares the duration; for others FFmpeg guesses from the bit rate or reads the file's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracks:
    """The tracks of an open container that are used: the first video track that is no cover, and the first sound.

    Tracks that FFmpeg has no decoder for are passed over, such as the spatial sound that telephones add.

    `zero_s` is the container time that counts as 0. `declared_s` is the duration in the header, None without one.
    """

    format: str
    zero_s: float
    declared_s: float | None
    num_video: int
    video: VideoStream | None
    sound: AudioStream | None

    @property
    def used(self) -> list[VideoStream | AudioStream]:
        """The tracks that exist, video first."""
        return [track for track in (self.video, self.sound) if track is not None]


def find_tracks(file: MediaFile, container: InputContainer) -> Tracks:
    """Finds the tracks and the clock of an open container."""
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
        video=next((stream for stream in videos if stream.codec_context is not None), None),
        sound=next((stream for stream in sounds if stream.codec_context is not None), None),
    )


def in_seconds(ticks: int, time_base: Fraction | None) -> float:
    """Converts a time from the unit of a stream or packet; streams and packets of a file always have a unit."""
    assert time_base is not None
    return ticks * time_base.numerator / time_base.denominator  # rounds once, as float(Fraction) does, and is faster


class Pass:
    """One pass through a container, up to its end or to the point where the data breaks off."""

    def __init__(self, file: MediaFile, container: InputContainer, tracks: Tracks) -> None:
        self._file = file
        self._container = container
        self._tracks = tracks
        # PyAV makes a new Fraction at each access, which would take longer than reading a packet.
        self._ticks = {track.index: track.time_base for track in tracks.used}
        self._ends: dict[int, int] = {}

    def packets(self) -> Iterator[Packet]:
        """Yields the packets of both tracks; a truncated file ends early, without an error."""
        num = 0
        try:
            for packet in packets_of(self._container, *self._tracks.used):
                if not packet.size:
                    continue
                num += 1
                start = packet.pts if packet.pts is not None else packet.dts
                if start is not None and not packet.is_discard:
                    end, index = start + (packet.duration or 0), packet.stream_index
                    self._ends[index] = max(end, self._ends.get(index, end))
                yield packet
        except FFmpegError as error:
            if not num or isinstance(error, MemoryError):
                raise

    @overload
    def frames(self, track: VideoStream) -> Iterator[VideoFrame]: ...

    @overload
    def frames(self, track: AudioStream) -> Iterator[AudioFrame]: ...

    def frames(self, track: VideoStream | AudioStream) -> Iterator[VideoFrame | AudioFrame]:
        """Yields the frames of a track in presentation order.

        Errors before the first key frame and in the last packet are ignored, because a recording may start between key
        frames and end within a packet. Any other error is raised.
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
        """Start of a frame on the container's clock; None if it has no time.

        `frame.time` cannot be used: PyAV gives the last frames of a decoder another time base.
        """
        return None if frame.pts is None else in_seconds(frame.pts, self._ticks[track.index]) - self._tracks.zero_s

    def promised_s(self, track: VideoStream | AudioStream) -> float:
        """Duration that a track should have: from its packets, or from the header if the file is cut off."""
        declared_s = self._tracks.declared_s
        if declared_s is not None and _far_less(max(map(self._reach_s, self._ticks)), declared_s):
            return declared_s
        return whole_s(self._file, self._reach_s(track.index))

    def _reach_s(self, index: int) -> float:
        """Latest end of a track's packets read so far, on the container's clock."""
        if index not in self._ends:
            return 0.0
        return max(0.0, in_seconds(self._ends[index], self._ticks[index]) - self._tracks.zero_s)


def edit_lag_s(file: MediaFile, settings: MediaSettings, first: Packet) -> float:
    """Returns how many seconds too early FFmpeg shows the frames of an MP4 file that was cut by an edit list.

    Where an edit list begins within a frame, FFmpeg drops that frame and shows the next one at the start of the edit,
    up to one frame too early. With `advanced_editlist=0`, FFmpeg's older way to read edit lists, frames are merely
    shifted by the start of the edit, to the right time.

    Args:
        file: The file.
        settings: The limit on pixels.
        first: The first packet that is shown, with FFmpeg's default reading.
    """
    if first.pts is None or first.pos is None:
        return 0.0
    with open_container(file, settings, advanced_editlist="0") as container:
        for packet in packets_of(container, container.streams[first.stream_index]):
            if packet.pos == first.pos and packet.pts is not None:
                lag_s = in_seconds(packet.pts - first.pts, packet.time_base)
                longest_s = in_seconds(first.duration or 0, packet.time_base)
                # With several edits, the two readings cannot be compared.
                return lag_s if 0 < lag_s < longest_s else 0.0
    return 0.0


def shortfall(path: Path, promised_s: float, decoded_s: float) -> tuple[str, ...]:
    """A warning if far less was decoded than the file declares."""
    if not _far_less(decoded_s, promised_s):
        return ()
    return (f"{path}: {decoded_s:.2f} s were decoded of {promised_s:.2f} s that the file declares; {CUT_OFF}",)


def _far_less(found_s: float, promised_s: float) -> bool:
    """True if more than a tenth and more than 0.1 s are missing; rounded headers and encoder delays explain less."""
    return promised_s - found_s > max(0.1, 0.1 * promised_s)
