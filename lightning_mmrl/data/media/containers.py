"""Opens containers with FFmpeg: only known formats, and nothing but the opened file.

FFmpeg also reads playlists (HLS, DASH, concat, SDP) and image sequences, which name further files or addresses. Three
rules limit FFmpeg to the opened file: it reads through our reader and may not use its own protocols; only formats that
hold their media themselves are allowed; and the format found at the first opening is used for all later ones.
"""

from collections.abc import Iterator

import av
import av.logging
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream

from lightning_mmrl.data.media.opened import MediaFile
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings

FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf"),
    *("ogg", "wav", "mp3", "flac", "aac", "aiff", "w64", "rm", "gif", "apng", "m4v", "h264", "hevc", "ivf", "obu"),
    *("dv", "mxf", "nut", "amr", "ac3", "eac3", "caf", "au", "wv", "ape", "tta"),
)
# FFmpeg would print a line for each damaged packet; the exceptions and our own warnings already say what is wrong.
av.logging.set_level(av.logging.PANIC)

_ONLY_THESE = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}

_LISTS = (b"#extm3u", b"ffconcat", b"v=0", b"<?xml", b"<mpd", b"<smil", b"[playlist]", b"[reference]", b"rtsptext")
"""First bytes of files that name other files; the rest of such a file may look like a medium."""


_TRACKS = 1000
"""Tracks that FFmpeg reads of one file at most (its option `max_streams`)."""


def open_container(file: MediaFile, settings: MediaSettings, what: str = "file", **options: str) -> InputContainer:
    """Opens a media file.

    Decoders get one thread each. They refuse frames far above the pixel limit before they allocate memory for them.

    Args:
        file: The file.
        settings: The limit on pixels.
        what: Word for the file in error messages.
        options: Further options of FFmpeg.

    Raises:
        MediaError: The format is unknown, or refers to other files.
    """
    if file.head(64).lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_LISTS):
        raise MediaError(
            f"{file.path}: {what} cannot be decoded (it is a list that names other files); re-encode or remove it"
        )
    # FFmpeg counts padding as pixels. The exact limit is checked on the picture that is shown.
    bounds = {"max_pixels": str(settings.max_pixels + settings.max_pixels // 4 + 2**20)}
    # FFmpeg lists several names for one format (six for MP4) and accepts any one of them.
    name = None if file.container is None else file.container.split(",")[0]
    try:
        container = av.open(
            file.reader(),
            "r",
            format=name,
            options={**options, **bounds, **_ONLY_THESE},
            metadata_errors="replace",  # titles and names in other encodings are common, and not used
        )
    except MemoryError:
        raise
    except (FFmpegError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise MediaError(f"{file.path}: {what} cannot be decoded ({reason}); re-encode or remove it") from error
    file.container = file.container or container.format.name  # PyAV reports the single name that it was given
    for stream in (*container.streams.video, *container.streams.audio):
        if stream.codec_context is not None:  # else FFmpeg has no decoder, see `find_tracks`
            stream.codec_context.thread_count = 1  # the decode workers already use all processors
            stream.codec_context.options = bounds
    return container


def packets_of(container: InputContainer, *streams: Stream) -> Iterator[Packet]:
    """Yields the packets of some tracks, in the order of the file.

    Another track may begin anywhere in MPEG-TS, MPEG-PS and FLV. PyAV 18.1 takes note of all tracks at the first call
    of `demux` and looks beyond its notes for such a packet, which may end in an IndexError. A further call knows the
    new track and goes on after that packet.
    """
    for _ in range(_TRACKS):
        try:
            yield from container.demux(*streams)
        except IndexError:
            continue
        return
    raise ValueError(f"more than {_TRACKS} tracks begin within the file")
