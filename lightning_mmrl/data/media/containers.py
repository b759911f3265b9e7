"""Containers as FFmpeg opens them: of a known format, from the opened file alone.

FFmpeg also reads playlists (HLS, DASH, concat, SDP) and image sequences, which name further files or addresses. Three
things keep it to the file: it reads through our reader and may use no protocol of its own, only formats are allowed
that hold their media themselves, and the format that is found at the first opening is the one of all later ones.
"""

import av
import av.logging
from av.container import InputContainer
from av.error import FFmpegError

from lightning_mmrl.data.media.opened import MediaFile
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings

FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf"),
    *("ogg", "wav", "mp3", "flac", "aac", "aiff", "w64", "rm", "gif", "apng", "m4v", "h264", "hevc", "ivf", "obu"),
    *("dv", "mxf", "nut", "amr", "ac3", "eac3", "caf", "au", "wv", "ape", "tta"),
)
# FFmpeg would print what it thinks of each damaged packet; errors are raised and warnings of our own say the rest.
av.logging.set_level(av.logging.PANIC)

_ONLY_THESE = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}

_LISTS = (b"#extm3u", b"ffconcat", b"v=0", b"<?xml", b"<mpd", b"<smil", b"[playlist]", b"[reference]", b"rtsptext")
"""How files begin that name other files: some of them go on with bytes that pass for a medium."""


def open_container(file: MediaFile, settings: MediaSettings, what: str = "file", **options: str) -> InputContainer:
    """Opens a media file; `what` is how an error names it, `options` are FFmpeg's.

    Decoders get one thread each and refuse frames far above the limit on pixels, before they take memory for them.

    Raises:
        MediaError: It is of no known format, or of one that refers to other files.
    """
    if file.head(64).lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_LISTS):
        raise MediaError(
            f"{file.path}: {what} cannot be decoded (it is a list that names other files); re-encode or remove it"
        )
    bounds = {"max_pixels": str(_frame_pixels(settings))}
    try:
        container = av.open(
            file.reader(), "r", format=_one_name(file.container), options={**options, **bounds, **_ONLY_THESE}
        )
    except MemoryError:
        raise
    except (FFmpegError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise MediaError(f"{file.path}: {what} cannot be decoded ({reason}); re-encode or remove it") from error
    file.container = file.container or container.format.name  # PyAV repeats the name that it was given
    for stream in (*container.streams.video, *container.streams.audio):
        stream.codec_context.thread_count = 1  # decode workers are as many as there is work for
        stream.codec_context.options = bounds
    return container


def _one_name(names: str | None) -> str | None:
    """FFmpeg calls the format of MP4 by six names, and knows it by any one of them."""
    return None if names is None else names.split(",")[0]


def _frame_pixels(settings: MediaSettings) -> int:
    """What FFmpeg may take for a frame: it counts padding, and our own limit is on the shown picture, to the pixel."""
    return settings.max_pixels + settings.max_pixels // 4 + 2**20
