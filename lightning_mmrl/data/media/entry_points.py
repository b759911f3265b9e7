"""Tells at which packets of a track decoding may start, from the packets' own bits and not from flags of the container.

A packet is an entry if all frames that are shown after its own can be decoded without any earlier packet. Only codecs
are supported whose packets show damage without being decoded, so that damage is noticed in all parts of a clip.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from av.video.codeccontext import VideoCodecContext

Content = Literal["entry", "described", "inner", "unclear"]
"""What a packet holds: a frame at which decoding may start, the same with parameter sets, another frame, or none of
these for certain."""

Reading = Callable[[memoryview], Content]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Types:
    """Types of units: of a picture, of a picture at which decoding may start, of a parameter set.

    The type stands in a unit's first byte, in the bits of `mask` after a shift to the right. After the header of a
    picture's first unit stands a bit that is 1.
    """

    pictures: range
    entries: range
    parameters: frozenset[int]
    shift: int
    mask: int
    header_bytes: int


_H264 = _Types(
    pictures=range(1, 6),
    entries=range(5, 6),
    parameters=frozenset({7, 8, 13, 15}),
    shift=0,
    mask=0x1F,
    header_bytes=1,
)
"""ITU-T H.264, table 7-1: an IDR picture has type 5. Other key frames may only be recovery points."""

_HEVC = _Types(
    pictures=range(22),
    entries=range(16, 22),
    parameters=frozenset({32, 33, 34}),
    shift=1,
    mask=0x3F,
    header_bytes=2,
)
"""ITU-T H.265, table 7-1: BLA, IDR and CRA pictures."""


def packet_reading(codec: VideoCodecContext) -> Reading | None:
    """The function that looks into a packet of a track; None if its codec or its form of packets is not supported."""
    header = codec.extradata or b""
    if codec.name == "h264" and len(header) > 4 and header[0] == 1:
        return lambda packet: _units(packet, (header[4] & 3) + 1, _H264)
    if codec.name == "hevc" and len(header) > 21 and header[0] == 1:
        return lambda packet: _units(packet, (header[21] & 3) + 1, _HEVC)
    return None


def _units(packet: memoryview, length_bytes: int, types: _Types) -> Content:
    """A packet of units, each after its length.

    A packet is damaged if its units do not fill it exactly, if one is empty, or if none starts a picture. A parameter
    set changes how later pictures are decoded, so a packet that brings one must be an entry.
    """
    at, end, found, starts = 0, len(packet), set[int](), False
    while at + length_bytes < end:
        size = int.from_bytes(packet[at : at + length_bytes], "big")
        at += length_bytes
        kind = packet[at] >> types.shift & types.mask
        if not size or at + size > end or packet[at] >> 7:  # the first bit of a unit is 0
            return "unclear"
        if kind in types.pictures and not starts:
            starts = size > types.header_bytes and packet[at + types.header_bytes] >> 7 == 1
            if not starts:
                return "unclear"
        found.add(kind)
        at += size
    if at != end or not starts:
        return "unclear"
    if found.isdisjoint(types.entries):
        return "inner" if found.isdisjoint(types.parameters) else "unclear"
    return "entry" if found.isdisjoint(types.parameters) else "described"
