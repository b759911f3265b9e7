"""Checks that a file is an MP4 file from start to end, by walking its boxes (ISO/IEC 14496-12).

decord cannot be told the format. Its FFmpeg guesses the format, and if it guesses wrong, it may read the file as a list
of other files.
"""

import struct
from collections.abc import Iterator

from lightning_mmrl.data.media.opened import MediaFile

_TOP = frozenset({b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"udta", b"meta", b"moof", b"mfra", b"sidx"})
_ON_THE_WAY = frozenset({b"moov", b"trak", b"mdia", b"minf", b"dinf"})
"""Boxes that contain `dref`, directly or not; `dref` says where the media of a track are stored."""

_MAX_FIRST_BYTES = 4096
"""A first box of at most this size starts with two zero bytes, so no text format can be recognized in it."""

_MAX_BOXES = 100_000
_IN_THIS_FILE = 1


class _OtherError(Exception):
    """The file is not an MP4 file."""


def is_plain_mp4(file: MediaFile) -> bool:
    """Whether `ftyp`, one `moov` and other known boxes fill the file, and all tracks are stored in the file itself."""
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
        """Yields the name of each box between two offsets, and where its content starts and ends."""
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
        """Whether all data references inside a box point to this file."""
        name, start, end = box
        if name != b"dref":
            return name not in _ON_THE_WAY or all(map(self.holds_its_media, self.boxes(start, end)))
        for _, entry, _ in self.boxes(start + 8, end):
            self.content.seek(entry)
            version_and_flags = struct.unpack(">I", self.content.read(4))[0]
            if not version_and_flags & _IN_THIS_FILE:
                return False
        return True
