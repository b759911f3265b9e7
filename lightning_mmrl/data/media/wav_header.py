"""How long a WAV file says that it is; FFmpeg and libsndfile both trust the file's size instead."""

import struct
from pathlib import Path

_UNKNOWN = frozenset({0, 0xFFFFFFFF, 0x7FFFFFFF})
"""Sizes that programs write which do not know the end when they begin."""


def declared_wav_s(path: Path) -> float | None:
    """Seconds that the header of a RIFF file declares; None if it does not say (streams, RF64)."""
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return None
        file.seek(12)
        bytes_per_s = 0
        while len(head := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            if name == b"data":
                return size / bytes_per_s if bytes_per_s and size not in _UNKNOWN else None
            if name == b"fmt ":
                content = file.read(size + size % 2)
                bytes_per_s = struct.unpack_from("<I", content, 8)[0] if len(content) >= 12 else 0
            else:
                file.seek(size + size % 2, 1)
    return None
