"""Checks that a GIF is complete, since Pillow gives no warning if the file is cut off between two frames."""

from lightning_mmrl.data.media.opened import MediaFile
from lightning_mmrl.data.media.selection import CUT_OFF

_HEADER = 13
_EXTENSION, _FRAME, _TRAILER = 0x21, 0x2C, 0x3B
_FRAME_HEADER = 10


def missing_end(file: MediaFile) -> tuple[str, ...]:
    """A warning if no trailer follows the blocks of a GIF (GIF89a, section 27).

    Args:
        file: A file that opens as a GIF.
    """
    if _has_trailer(file.head(file.size)):
        return ()
    return (f"{file.path}: it stops before the end that a GIF declares; {CUT_OFF}",)


def _has_trailer(content: bytes) -> bool:
    at = _HEADER + _table_size(content[_HEADER - 3])
    while at < len(content):
        kind = content[at]
        if kind == _TRAILER:
            return True
        if kind == _FRAME:
            if at + _FRAME_HEADER > len(content):
                return False
            at += _FRAME_HEADER + _table_size(content[at + _FRAME_HEADER - 1]) + 1
        elif kind == _EXTENSION:
            at += 2
        else:  # decoders skip bytes that belong to no block
            at += 1
            continue
        while at < len(content) and content[at]:
            at += content[at] + 1
        at += 1
    return False


def _table_size(flags: int) -> int:
    """Size in bytes of the color table that follows a header."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
