"""Decodes of a long clip only what its chosen frames need: from the entry before each of them up to the frame itself.

All packets are read, so that the frames are counted and timed as if all were decoded. Those of other frames are not
decoded. If anything is not as the packets say, the caller must decode the clip whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from lightning_mmrl.data.media.chosen import ChosenFrames
from lightning_mmrl.data.media.containers import packets_of
from lightning_mmrl.data.media.entry_points import packet_reading
from lightning_mmrl.data.media.selection import BACK_S

LARGEST_SHARE = 0.75
"""Largest share of a clip's packets for which decoding a part pays: a whole pass also checks the rest."""

_EXACT = 2**53
"""The largest integer up to which all have a float."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameIndex:
    """The frames of a clip, one in each packet.

    Attributes:
        ticks: Time of each packet's frame, in the order of the packets, in units of the track.
        entries: Numbers of the packets at which decoding may start; the first is 0. All frames of earlier packets are
            shown before the frame of an entry.
        shown: `ticks` in display order.
        starts_s: `shown` in seconds, on the container's clock.
    """

    ticks: np.ndarray
    entries: np.ndarray
    shown: np.ndarray
    starts_s: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Packets that are decoded one after another.

    Attributes:
        packet: Number of the first packet, an entry.
        first: Index of its frame, in display order.
        last: Index of the last frame that is wanted.
    """

    packet: int
    first: int
    last: int


class FrameIndexer:
    """Makes a `FrameIndex` from the packets of a track."""

    def __init__(self, stream: VideoStream) -> None:
        self._tick = stream.time_base or Fraction(1)
        self._content = packet_reading(stream.codec_context)
        self._ticks: list[int] = []
        self._entries: list[int] = []
        self._described: list[int] = []

    def add(self, packet: Packet) -> None:
        """Adds the next packet; one whose frame is hidden, unclear or without a time ends the making."""
        if self._content is None:
            return
        content = self._content(memoryview(packet))
        flawed = packet.is_discard or packet.is_corrupt or packet.has_sidedata("new_extradata")
        if packet.pts is None or flawed or content == "unclear":
            self._content = None
            return
        if content in ("entry", "described"):
            self._entries.append(len(self._ticks))
        if content == "described":
            self._described.append(len(self._ticks))
        self._ticks.append(packet.pts)

    def index(self, zero_s: float) -> FrameIndex | None:
        """The index, or None if the clip must be decoded whole; `zero_s` is the time that counts as 0."""
        if self._content is None or self._entries[:1] != [0]:
            return None
        # Parameter sets hold until the next ones: an entry must bring its own if any entry after the first does.
        if self._described not in ([], [0], self._entries):
            return None
        if max(map(abs, self._ticks)) * self._tick.numerator > _EXACT:
            return None
        ticks, entries = np.array(self._ticks, dtype=np.int64), np.array(self._entries)
        shown, latest = np.sort(ticks), np.maximum.accumulate(ticks)
        unique = bool(np.all(shown[1:] > shown[:-1]))
        apart = bool(np.all(latest[entries[1:] - 1] < ticks[entries[1:]]))
        jumps_back = bool(np.any(latest - ticks > BACK_S / self._tick))
        if jumps_back or not (unique and apart):
            return None
        # Rounds once, as `in_seconds` does.
        starts_s = shown * self._tick.numerator / self._tick.denominator - zero_s
        return FrameIndex(ticks=ticks, entries=entries, shown=shown, starts_s=starts_s)


def plan_runs(index: FrameIndex, wanted: Sequence[int], largest_share: float = LARGEST_SHARE) -> list[Run] | None:
    """The runs that hold some frames and the first one, or None if they take more than a share of all packets.

    The first frame says which size the others get, and its packet may tell the decoder something about all of them.
    """
    last_packets = np.argsort(index.ticks, kind="stable")
    entry_ticks = index.ticks[index.entries]
    runs: dict[int, Run] = {}
    for frame in sorted({0, *wanted}):
        packet = int(index.entries[np.searchsorted(entry_ticks, index.shown[frame], side="right") - 1])
        first = int(np.searchsorted(index.shown, index.ticks[packet]))
        runs[packet] = Run(packet=packet, first=first, last=frame)
    decoded = sum(int(last_packets[run.first : run.last + 1].max()) + 1 - run.packet for run in runs.values())
    return list(runs.values()) if decoded <= largest_share * len(index.shown) else None


def read_runs(
    container: InputContainer, stream: VideoStream, index: FrameIndex, runs: Sequence[Run], chosen: ChosenFrames
) -> bool:
    """Decodes the runs and offers their frames; False if packets or frames are not those of the index."""
    try:
        for number, frame in _frames(container, stream, index, runs):
            chosen.offer(number, frame)
    except MemoryError:
        raise
    except (FFmpegError, ValueError, OSError, _OtherError):
        return False
    return chosen.complete


class _OtherError(Exception):
    """A packet or a frame has another time than the index says."""


def _frames(
    container: InputContainer, stream: VideoStream, index: FrameIndex, runs: Sequence[Run]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yields the frames of the runs, each with its index in display order."""
    ahead, run, at = list(runs), runs[0], _Place(index.shown, 0)
    decoding = False
    packets = (packet for packet in packets_of(container, stream) if packet.size)
    for number, packet in enumerate(packets):
        if number >= len(index.ticks) or packet.pts != index.ticks[number]:
            raise _OtherError
        if ahead and number == ahead[0].packet:
            run = ahead.pop(0)
            if not decoding:  # else the run before is not over and goes on into this one
                stream.codec_context.flush_buffers()
                at, decoding = _Place(index.shown, run.first), True
        if decoding:
            yield from at.numbered(stream.decode(packet))
            decoding = at.next <= run.last
        elif not ahead:
            return
    if decoding:
        yield from at.numbered(stream.decode(None))


class _Place:
    """Counts frames in display order, and checks that each has the time of its number.

    Args:
        shown: Times of all frames.
        first: Number of the frame of the packet at which decoding starts.
    """

    def __init__(self, shown: np.ndarray, first: int) -> None:
        self._shown = shown
        self._first = first
        self.next = first

    def numbered(self, frames: Sequence[VideoFrame]) -> Iterator[tuple[int, VideoFrame]]:
        """Yields frames with their numbers.

        Frames that are shown before the first may come with it; they may be incomplete, and are left out.
        """
        for frame in frames:
            if frame.pts is not None and frame.pts < self._shown[self._first]:
                continue
            if self.next >= len(self._shown) or frame.pts != self._shown[self.next]:
                raise _OtherError
            yield self.next, frame
            self.next += 1
