"""Whether a file is an MP4 file and nothing else, by the boxes of its whole length (ISO/IEC 14496-12).

decord takes no name of a format: its FFmpeg guesses, and what it guesses wrong may be a list of other files.
"""

import struct
from collections.abc import Iterator

from lightning_mmrl.data.media.opened import MediaFile

_TOP = frozenset({b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"udta", b"meta", b"moof", b"mfra", b"sidx"})
_ON_THE_WAY = frozenset({b"moov", b"trak", b"mdia", b"minf", b"dinf"})
"""Boxes that lead to `dref`, which says where the media of a track lie."""

_MAX_FIRST_BYTES = 4096
"""A first box of this size begins with two zero bytes: no format that is told by its text is found there."""

_MAX_BOXES = 100_000
_IN_THIS_FILE = 1


class _OtherError(Exception):
    """The file is of another kind."""


def is_plain_mp4(file: MediaFile) -> bool:
    """Whether `ftyp` and known boxes with one `moov` fill the file, and all tracks lie in the file itself."""
    walk = _Walk(file)
    try:
        top = list(walk.boxes(0, file.size))
        names = [name for name, _, _ in top]
        if names[:1] != [b"ftyp"] or top[0][2] > _MAX_FIRST_BYTES or names.count(b"moov") != 1:
            return False
        return set(names[1:]) <= _TOP and all(map(walk.holds_its_media, top))
    except (_OtherError, struct.error):
        return False
    finally:
        walk.content.close()


class _Walk:
    def __init__(self, file: MediaFile) -> None:
        self.content = file.reader()
        self._num = 0

    def boxes(self, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Name, start and end of the content of each box between two places."""
        while at < end:
            self._num += 1
            self.content.seek(at)
            size, name = struct.unpack(">I4s", self.content.read(8))
            start = at + 8
            if size == 1:
                size, start = struct.unpack(">Q", self.content.read(8))[0], at + 16
            stop = at + size
            if not start <= stop <= end or self._num > _MAX_BOXES:
                raise _OtherError
            yield name, start, stop
            at = stop

    def holds_its_media(self, box: tuple[bytes, int, int]) -> bool:
        """Whether no data reference below a box leads elsewhere."""
        name, start, end = box
        if name == b"dref":
            return all(self._flags(entry) & _IN_THIS_FILE for _, entry, _ in self.boxes(start + 8, end))
        return name not in _ON_THE_WAY or all(map(self.holds_its_media, self.boxes(start, end)))

    def _flags(self, at: int) -> int:
        self.content.seek(at)
        return struct.unpack(">I", self.content.read(4))[0] & 0xFFFFFF
