"""Writes media that lie inside a table to files below the media root, once each, under the hash of their content."""

import base64
import binascii
import hashlib
import re
from pathlib import Path

from lightning_mmrl.data.schema import LineError
from lightning_mmrl.errors import DataError, DiskError
from lightning_mmrl.files import write_whole
from lightning_mmrl.types.records import MediaKind

INLINE_FOLDER = ".mmrl-inline"
MAX_INLINE_BYTES = 2**30
_SIGNATURES = (
    (0, b"\x89PNG", "png"),
    (0, b"\xff\xd8\xff", "jpg"),
    (0, b"GIF8", "gif"),
    (8, b"WEBP", "webp"),
    (8, b"WAVE", "wav"),
    (0, b"BM", "bmp"),
    (0, b"II*\x00", "tif"),
    (0, b"MM\x00*", "tif"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"ID3", "mp3"),
    (4, b"ftyp", "mp4"),
    (0, b"\x1a\x45\xdf\xa3", "mkv"),
)
_FALLBACK = {"image": "img", "video": "vid", "audio": "snd"}
_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w.=-]+)*;base64,", re.ASCII)


def is_data_url(text: str) -> bool:
    """Whether a text holds a medium itself, as `data:image/png;base64,...`."""
    return _DATA_URL.match(text[:200]) is not None


def data_url_bytes(text: str, what: str) -> bytes:
    """The medium that a text holds.

    Raises:
        LineError: The text is no base64.
    """
    try:
        return base64.b64decode(text.split(",", 1)[1], validate=True)
    except (binascii.Error, ValueError) as error:
        reason = f"{what} holds a medium that is no base64 ({error}); write the file again"
        raise LineError("media entries", reason) from error


def kept_inline(content: bytes, kind: MediaKind, media_root: Path, what: str) -> str:
    """Writes a medium below the media root, unless it is there already, and returns its path below the root.

    Any number of processes may write the same medium at once.

    Args:
        content: The medium.
        kind: Its kind; the file's suffix follows the content.
        media_root: Folder that paths of media are relative to.
        what: The entry, in words, for messages.

    Raises:
        LineError: The medium is empty or too large.
        DataError: The media root does not exist or cannot be written.
    """
    if not 0 < len(content) <= MAX_INLINE_BYTES:
        reason = f"{what} holds a medium of {len(content)} bytes; it must have 1 to {MAX_INLINE_BYTES}"
        raise LineError("media entries", reason)
    suffix = next((name for at, mark, name in _SIGNATURES if content[at:].startswith(mark)), _FALLBACK[kind])
    digest = hashlib.sha256(content).hexdigest()
    path = f"{INLINE_FOLDER}/{digest[:2]}/{digest}.{suffix}"
    file = media_root / path
    if file.is_file() and file.stat().st_size == len(content):
        return path
    if not media_root.is_dir():
        raise DataError(f"media_root {media_root} is no folder, and media of the table are written to it; create it")
    try:
        write_whole(file, content, shared=True, durable=False)
    except OSError as error:
        why = error.problem if isinstance(error, DiskError) else f"{file}: {error.strerror}"
        raise DataError(
            f"{what} holds a medium, which is written to a file below media_root ({why}); set media_root to a folder "
            "that can be written"
        ) from error
    return path
