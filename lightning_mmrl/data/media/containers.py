"""Which container formats are opened at all: only those that hold their media themselves.

FFmpeg also reads playlists (HLS, DASH, concat, SDP) and image sequences, which name further files or addresses: a
playlist inside of `media_root` could read a file outside of it.
"""

from pathlib import Path

import av
import av.logging
from av.container import InputContainer
from av.error import FFmpegError

from lightning_mmrl.errors import MediaError

FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf"),
    *("ogg", "wav", "mp3", "flac", "aac", "aiff", "w64", "rm", "gif", "apng", "m4v", "h264", "hevc", "ivf", "obu"),
    *("dv", "mxf", "nut", "amr", "ac3", "eac3", "caf", "au", "wv", "ape", "tta"),
)
# FFmpeg would print what it thinks of each damaged packet; errors are raised and warnings of our own say the rest.
av.logging.set_level(av.logging.PANIC)

_ONLY_THESE = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}


def open_container(path: Path, what: str = "file", **options: str) -> InputContainer:
    """Opens a media file; `what` is how an error names it, `options` are FFmpeg's.

    Raises:
        MediaError: It is of no known format, or of one that refers to other files.
    """
    try:
        return av.open(str(path), options={**options, **_ONLY_THESE})
    except (FFmpegError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise MediaError(f"{path}: {what} cannot be decoded ({reason}); re-encode or remove it") from error
