"""Finds the duration of a whole file from the size in its header, since FFmpeg and libsndfile use the size on disk."""

import struct

from lightning_mmrl.data.media.opened import MediaFile

_UNKNOWN_FROM = 0x7FFF_F000
"""Programs that stream a file of unknown length write 0, or a size near the largest possible one."""

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_HEAD_BYTES = 4096


def whole_s(file: MediaFile, found_s: float) -> float:
    """The duration of the whole file, given that the part on disk lasts `found_s`.

    The result is `found_s` if the file is as large as its header declares, or if the header declares no size. Only WAV,
    AVI, AIFF and ASF files declare one.
    """
    head, declared = file.head(_HEAD_BYTES), 0
    if len(head) >= 8 and head[:4] in (b"RIFF", b"FORM"):
        size = struct.unpack_from("<I" if head[:4] == b"RIFF" else ">I", head, 4)[0]
        declared = size + 8 if size < _UNKNOWN_FROM else 0
    at = head.find(_ASF_FILE_PROPERTIES)
    if head.startswith(_ASF) and 0 < at <= len(head) - 48:
        declared = struct.unpack_from("<Q", head, at + 40)[0]
    return found_s * declared / file.size if declared > file.size else found_s
