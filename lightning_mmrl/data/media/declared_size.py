"""How many bytes a file says that it has, in formats where FFmpeg and libsndfile believe the size on disk instead."""

import struct

from lightning_mmrl.data.media.opened import MediaFile

_UNKNOWN_FROM = 0x7FFF_F000
"""Programs that do not know the end when they begin write sizes near the largest possible one, or 0."""

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_HEAD_BYTES = 4096


def whole_s(file: MediaFile, found_s: float) -> float:
    """How long the media of a file would be that now last `found_s`, were it as large as it declares."""
    declared, found = _declared_bytes(file.head(_HEAD_BYTES)), file.size
    return found_s * declared / found if declared is not None and declared > found else found_s


def _declared_bytes(head: bytes) -> int | None:
    """The size that the header of a WAV, AVI, AIFF or ASF file declares; None for others, and if it does not say."""
    if len(head) >= 8 and head[:4] in (b"RIFF", b"FORM"):
        size = struct.unpack_from("<I" if head[:4] == b"RIFF" else ">I", head, 4)[0]
        return size + 8 if 0 < size < _UNKNOWN_FROM else None
    at = head.find(_ASF_FILE_PROPERTIES)
    if head.startswith(_ASF) and 0 < at <= len(head) - 48:
        return struct.unpack_from("<Q", head, at + 40)[0] or None
    return None
