"""Files that decoders blow up are refused in one sentence, and a worker stays within its memory over them."""

import struct
import sys
import zlib
from pathlib import Path

import media_bomb_files
import numpy as np
import pytest
from clips import write_grey, write_wav

from lightning_mmrl.data.media.guard import DecodeTask, GuardedDecoder, decode
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef
from lightning_mmrl.workers.serving import Limits

HERE = Path(__file__).parent

QUICK = {
    "endless_index.mp4": "video cannot be decoded|video has no frames|decode_memory_mb",
    "moving.webp": "exceed media.max_pixels",
    "compressed.mka": "media.max_duration_s",
    "plausible.mka": "decoding it takes more than data.media.decode_memory_mb",
    "empty.wav": "its sound has 2147483647 samples per second, over 768000; resample it",
    "huge.gif": "169000000 pixels exceed media.max_pixels",
    "header.png": "exceeds limit of 178956970 pixels",
    "canvas.webp": "268435456 pixels exceed media.max_pixels",
    "lossless.webp": "268435456 pixels exceed media.max_pixels",
}
"""Beginning of what is said of files that take no time to write, each as the first word that fits."""


def header_png(path):
    header = struct.pack(">4sIIBBBBB", b"IHDR", 60_000, 60_000, 8, 0, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + crc + struct.pack(">I4s", 9, b"IDAT"))


def webp(kind, size):
    content = kind + struct.pack("<I", len(size)) + size
    return b"RIFF" + struct.pack("<I", len(content) + 4) + b"WEBP" + content


def canvas_webp(path):
    path.write_bytes(webp(b"VP8X", bytes([2, 0, 0, 0, 0xFF, 0x3F, 0, 0xFF, 0x3F, 0])) + bytes(40))


def lossless_webp(path):
    path.write_bytes(webp(b"VP8L", b"\x2f" + (0x3FFF | 0x3FFF << 14).to_bytes(4, "little")) + bytes(40))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bombs")
    own = {"header.png": ("image", header_png), "canvas.webp": ("image", canvas_webp)}
    own |= {"moving.webp": ("video", canvas_webp), "lossless.webp": ("image", lossless_webp)}
    tasks = []
    for name in QUICK:
        kind, write = own[name] if name in own else media_bomb_files.BOMBS[name]
        write(folder / name)
        ref = MediaRef(kind=kind, path=name)
        tasks.append(DecodeTask(path=folder / name, ref=ref, settings=MediaSettings(), root=folder))
    return tasks


@pytest.fixture
def weigh(monkeypatch):
    """Spawned workers get this path too."""
    monkeypatch.syspath_prepend(str(HERE))
    import weighed_decoder

    yield weighed_decoder.weigh
    del sys.modules["weighed_decoder"]


@pytest.mark.timeout(120)
def test_a_worker_stays_below_a_gibibyte_over_its_start_and_names_each_file(written, weigh):
    found = {}
    GuardedDecoder(workers=1, deadline_s=60.0).run(weigh, written, found.__setitem__)
    assert [outcome.error for outcome in found.values()] == [None] * len(QUICK)
    for index, task in enumerate(written):
        said, grown_mib = found[index].value
        name = task.path.name
        assert said.startswith(f"{task.path}: "), said
        assert any(words in said for words in QUICK[name].split("|")), said
        assert grown_mib < 1024, name


@pytest.mark.timeout(120)
def test_the_limit_on_memory_is_the_one_that_was_given(tmp_path, weigh):
    """Minutes of sound that take 92 MB as a waveform: too much for 64 MiB, and legal with more."""
    path = write_wav(tmp_path / "a.wav", np.zeros(24_000_000, dtype=np.int16), 96_000)
    task = DecodeTask(path=path, ref=MediaRef(kind="audio", path="a.wav"), settings=MediaSettings(), root=tmp_path)
    said = []
    for memory_mb in (64, 512):
        GuardedDecoder(workers=1, deadline_s=60.0, memory_mb=memory_mb).run(
            weigh, [task], lambda _, outcome: said.append(outcome.value[0])
        )
    limit = "data.media.decode_memory_mb, or --memory-mb"
    assert said[0].startswith(f"{path}: decoding it takes more than {limit}; scale it down or cut")
    assert said[1] == "decoded"


def test_workers_get_the_limits(monkeypatch, tmp_path):
    given = []

    class Pool:
        def __init__(self, *_, limits, **__):
            given.append(limits)

        def close(self):
            pass

        def map_patiently(self, *_, **__):
            pass

    monkeypatch.setattr("lightning_mmrl.data.media.guard.DeadlinePool", Pool)
    task = DecodeTask(path=tmp_path, ref=MediaRef(kind="audio", path="a"), settings=MediaSettings())
    GuardedDecoder(deadline_s=7.0, memory_mb=5).decode_all([task], lambda *_: None)
    assert given == [Limits(memory_bytes=5 * 2**20, processor_s=7.0)]


def test_frames_that_grow_in_midstream_are_refused(tmp_path):
    small = write_grey(tmp_path / "small.h264", [index / 25 for index in range(10)])
    large = write_grey(tmp_path / "large.h264", [index / 25 for index in range(2)], size=2048)
    path = tmp_path / "grows.mp4"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    ref = MediaRef(kind="video", path="grows.mp4")
    with pytest.raises(MediaError, match=r"grows\.mp4: (frames of 4194304 pixels exceed|video cannot be decoded)"):
        decode(DecodeTask(path=path, ref=ref, settings=MediaSettings(max_pixels=64 * 64)))
    assert decode(DecodeTask(path=path, ref=ref, settings=MediaSettings())).frames.shape[0] == 8
