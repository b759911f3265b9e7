"""Small files that decoders blow up, in memory or in time; each takes kilobytes, or a few megabytes, on disk."""

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

from lightning_mmrl.types.records import MediaKind

BIG = 13_000
"""Pixels a side: more than `max_pixels` lets pass, and less than Pillow's own limit."""


def huge_frames(path: Path) -> None:
    """An MP4 of 16384 x 8192 pixels."""
    _write_black(path, "mp4", 16_384, 8192, 2)


def huge_hevc(path: Path) -> None:
    """The same picture in HEVC and Matroska."""
    _write_black(path, "matroska", 8192, 8192, 2, codec="libx265")


def grows_midstream(path: Path) -> None:
    """A raw H.264 stream of 64 x 64 pixels that goes on at 16384 x 8192."""
    small, large = path.with_suffix(".small"), path.with_suffix(".large")
    _write_black(small, "h264", 64, 64, 20)
    _write_black(large, "h264", 16_384, 8192, 2)
    path.write_bytes(small.read_bytes() + large.read_bytes())


def grows_in_a_broadcast(path: Path) -> None:
    """The same in MPEG-TS, where a later part of the program may have another size."""
    small, large = path.with_suffix(".small"), path.with_suffix(".large")
    _write_black(small, "mpegts", 64, 64, 20)
    _write_black(large, "mpegts", 16_384, 8192, 2)
    path.write_bytes(small.read_bytes() + large.read_bytes())


def long_and_black(path: Path) -> None:
    """Minutes of 4096 x 4096 pixels, 25 frames a second, in which nothing ever changes."""
    _write_black(path, "matroska", 4096, 4096, 250, times=35)


def long_and_black_mp4(path: Path) -> None:
    """Ten minutes of the like as decord gets it, with one key frame in ten seconds."""
    _write_black(path, "mp4", 4096, 2304, 250, times=60)


def endless_index(path: Path) -> None:
    """An MP4 whose table of equal samples counts 80 million of them in twelve bytes."""
    _write_black(path, "mp4", 64, 64, 10)
    content = bytearray(path.read_bytes())
    count = 80_000_000
    for name, values in ((b"stsz", (0, 1, count)), (b"stsc", (0, 1, 1, count, 1)), (b"stts", (0, 1, count, 1))):
        at = content.index(name) + 4
        struct.pack_into(f">{len(values)}I", content, at, *values)
    path.write_bytes(content)


def compressed_sound(path: Path) -> None:
    """Matroska whose blocks of silence are packed by zlib, at a rate that no recorder knows."""
    _write_matroska(path, _sound_track(rate_hz=2**31, bits=8), [zlib.compress(bytes(9_000_000))] * 300)


def compressed_plausible_sound(path: Path) -> None:
    """The same at a rate that recorders know: within `max_duration_s`, and 1.8 GB as a waveform."""
    _write_matroska(path, _sound_track(rate_hz=768_000, bits=8), [zlib.compress(bytes(7_680_000))] * 59)


def silent_flac(path: Path) -> None:
    """Just below ten minutes of silence at 655350 Hz."""
    block = np.zeros(655_350, dtype=np.int16)
    with soundfile.SoundFile(path, "w", 655_350, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(590):
            file.write(block)


def empty_wav(path: Path) -> None:
    """A hole of 250 MB on disk that a header calls sound of two billion samples per second."""
    size, rate = 250_000_000, 2**31 - 1
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, rate, rate, 1, 8, b"data", size
    )
    path.write_bytes(header)
    with path.open("r+b") as file:
        file.truncate(size + 44)


def huge_png(path: Path) -> None:
    """A PNG of 30000 x 30000 pixels."""
    _write_png(path, 30_000, 30_000)


def large_png(path: Path) -> None:
    """A PNG below Pillow's own limit."""
    _write_png(path, BIG, BIG)


def moving_png(path: Path) -> None:
    """An APNG of 4096 x 4096 pixels and 5000 frames; all but the first change one pixel."""
    whole, pixel = zlib.compress(bytes(4097 * 4096), 9), zlib.compress(bytes(2))
    chunks = [_chunk(b"acTL", struct.pack(">II", 5000, 0))]
    chunks += [_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 4096, 4096, 0, 0, 1, 10, 0, 0)), _chunk(b"IDAT", whole)]
    for number in range(1, 9999, 2):
        chunks.append(_chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, 1, 1, 0, 0, 1, 10, 0, 0)))
        chunks.append(_chunk(b"fdAT", struct.pack(">I", number + 1) + pixel))
    _write_png_chunks(path, 4096, 4096, chunks)


def moving_gif(path: Path) -> None:
    """A GIF of 4096 x 4096 pixels with 20000 frames of one pixel each."""
    frame = (
        b"\x21\xf9\x04\x04\x02\x00\x00\x00" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    )
    screen = struct.pack("<HHBBB", 4096, 4096, 0x80, 0, 0) + bytes(6)
    path.write_bytes(b"GIF89a" + screen + frame * 20_000 + b"\x3b")


def huge_gif(path: Path) -> None:
    """A GIF of two frames and 13000 x 13000 pixels, with one pixel stored."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    screen = struct.pack("<HHBBB", BIG, BIG, 0x80, 0, 0) + bytes(6)
    path.write_bytes(b"GIF89a" + screen + frame * 2 + b"\x3b")


def huge_webp(path: Path) -> None:
    """A WebP of 12000 x 12000 pixels."""
    Image.new("L", (12_000, 12_000)).convert("RGB").save(path, "WEBP", lossless=True, quality=0, method=0)


def huge_tiff(path: Path) -> None:
    """A TIFF of one strip for all its rows."""
    Image.new("L", (BIG, BIG)).save(path, "TIFF", compression="tiff_adobe_deflate")


def huge_jpeg(path: Path) -> None:
    """A JPEG of 13000 x 13000 pixels."""
    Image.new("L", (BIG, BIG)).save(path, "JPEG", quality=1)


def endless_jpeg(path: Path) -> None:
    """A progressive JPEG of 4000 x 4000 pixels that refines nothing 2000 times."""
    Image.new("L", (4000, 4000)).save(path, "JPEG", progressive=True, quality=1)
    content = path.read_bytes()
    scans = content.index(b"\xff\xda", content.rindex(b"\xff\xc2"))
    last = content.rindex(b"\xff\xda")
    path.write_bytes(content[:scans] + content[scans:-2] + content[last:-2] * 2000 + content[-2:])


BOMBS: Mapping[str, tuple[MediaKind, Callable[[Path], None]]] = {
    "huge_frames.mp4": ("video", huge_frames),
    "huge_hevc.mkv": ("video", huge_hevc),
    "grows_midstream.mp4": ("video", grows_midstream),
    "grows_in_a_broadcast.ts": ("video", grows_in_a_broadcast),
    "long_and_black.mkv": ("video", long_and_black),
    "long_and_black.mp4": ("video", long_and_black_mp4),
    "endless_index.mp4": ("video", endless_index),
    "moving.png": ("video", moving_png),
    "moving.gif": ("video", moving_gif),
    "compressed.mka": ("audio", compressed_sound),
    "plausible.mka": ("audio", compressed_plausible_sound),
    "silent.flac": ("audio", silent_flac),
    "empty.wav": ("audio", empty_wav),
    "huge.png": ("image", huge_png),
    "large.png": ("image", large_png),
    "huge.gif": ("image", huge_gif),
    "huge.webp": ("image", huge_webp),
    "huge.tiff": ("image", huge_tiff),
    "huge.jpg": ("image", huge_jpeg),
    "endless.jpg": ("image", endless_jpeg),
}
"""The kind that a file is asked for as, and the function that writes it, by file name."""


def _write_black(
    path: Path, container: str, width: int, height: int, num_frames: int, *, codec: str = "libx264", times: int = 1
) -> None:
    """Black frames, encoded once and repeated as packets."""
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        quick = {"preset": "ultrafast", "g": "250"}
        stream.codec_context.options = {**quick, "x265-params": "log-level=none"} if codec == "libx265" else quick
        black = av.VideoFrame(width, height, stream.pix_fmt)
        for index, plane in enumerate(black.planes):
            plane.update(bytes([128 if index else 0]) * plane.buffer_size)
        packets = list(_encoded(stream, black, num_frames))
        for turn in range(times):
            for index, content in enumerate(packets):
                packet = av.Packet(content[0])
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                packet.pts = packet.dts = turn * len(packets) + index
                packet.is_keyframe = content[1]
                output.mux(packet)


def _encoded(stream: av.VideoStream, frame: av.VideoFrame, num_frames: int) -> Iterator[tuple[bytes, bool]]:
    for index in range(num_frames):
        frame.pts = index
        for packet in stream.encode(frame):
            yield bytes(packet), packet.is_keyframe
    for packet in stream.encode(None):
        yield bytes(packet), packet.is_keyframe


def _write_png(path: Path, width: int, height: int) -> None:
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    _write_png_chunks(path, width, height, [_chunk(b"IDAT", rows)])


def _write_png_chunks(path: Path, width: int, height: int, chunks: list[bytes]) -> None:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IEND", b""))


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _sound_track(rate_hz: int, bits: int) -> bytes:
    audio = _element(0xB5, struct.pack(">d", rate_hz)) + _element(0x9F, b"\x01") + _element(0x6264, bytes([bits]))
    packed = _element(0x5034, _element(0x4254, b"\x00"))
    encodings = _element(0x6D80, _element(0x6240, _element(0x5031, b"\x00") + _element(0x5033, b"\x00") + packed))
    number = _element(0xD7, b"\x01") + _element(0x73C5, b"\x01") + _element(0x83, b"\x02")
    return _element(0xAE, number + _element(0x86, b"A_PCM/INT/LIT") + _element(0xE1, audio) + encodings)


def _write_matroska(path: Path, track: bytes, blocks: list[bytes]) -> None:
    """One cluster per block, ten seconds apart."""
    kind = _element(0x1A45DFA3, _element(0x4282, b"matroska"))
    info = _element(0x1549A966, _element(0x2AD7B1, struct.pack(">I", 1_000_000)))
    clusters = [
        _element(
            0x1F43B675, _element(0xE7, struct.pack(">I", 10_000 * number)) + _element(0xA3, b"\x81\x00\x00\x80" + block)
        )
        for number, block in enumerate(blocks)
    ]
    path.write_bytes(kind + _element(0x18538067, info + _element(0x1654AE6B, track) + b"".join(clusters)))


def _element(number: int, content: bytes) -> bytes:
    name = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return name + (len(content) | 1 << 56).to_bytes(8, "big") + content
