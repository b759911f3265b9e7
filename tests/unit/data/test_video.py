import sys
from fractions import Fraction

import av
import clips
import numpy as np
import pytest

from lightning_mmrl.data.media import video
from lightning_mmrl.data.media.guard import DecodeTask, decode
from lightning_mmrl.data.synthetic.video_file import write_silent_clip
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef

EVEN = [index / 10 for index in range(20)]
UNEVEN = [0.0, 0.1, 0.2, 0.3, 1.0, 2.0, 2.1]

ENGINES = [
    pytest.param(video.decode_pyav, id="pyav"),
    pytest.param(
        video.decode_decord,
        id="decord",
        marks=pytest.mark.skipif(not video.HAS_DECORD, reason="decord has no wheel here"),
    ),
]
engines = pytest.mark.parametrize("engine", ENGINES)


def look(engine, path, num_frames, start_s=None, end_s=None, **limits):
    ref = MediaRef(kind="video", path=path.name, start_s=start_s, end_s=end_s)
    return engine(path, ref, MediaSettings(num_frames=num_frames, **limits))


@engines
@pytest.mark.parametrize(
    ("starts", "how", "expected", "duration_s"),
    [
        (EVEN, {"num_frames": 4}, [2, 7, 12, 17], 2.0),
        (EVEN, {"num_frames": 7}, [1, 4, 7, 10, 12, 15, 18], 2.0),
        (EVEN, {"num_frames": 5}, [2, 6, 10, 14, 18], 2.0),  # the middles are the starts of these frames
        (EVEN, {"num_frames": 3, "start_s": 0.5, "end_s": 1.1}, [6, 8, 10], 0.6),
        (EVEN, {"num_frames": 2, "start_s": 1.0}, [12, 17], 1.0),
        (EVEN, {"num_frames": 2, "end_s": 99.0}, [5, 15], 2.0),
        (EVEN, {"num_frames": 40}, [index // 2 for index in range(40)], 2.0),
        (UNEVEN, {"num_frames": 5}, [2, 3, 4, 4, 6], 2.45),  # 0.245, 0.735, 1.225, 1.715, 2.205 s
        (UNEVEN, {"num_frames": 4, "end_s": 0.4}, [0, 1, 2, 3], 0.4),
        ([0.0, 0.5], {"num_frames": 4}, [0, 0, 1, 1], 1.0),
        ([0.0], {"num_frames": 3}, [0, 0, 0], 0.04),
        ([start_s + 1.5 for start_s in EVEN], {"num_frames": 4}, [2, 7, 12, 17], 2.0),
    ],
)
def test_frames_are_those_on_show_at_the_middles_of_equal_segments(engine, starts, how, expected, duration_s, tmp_path):
    decoded = look(engine, clips.write_grey(tmp_path / "clip.mp4", starts), **how)
    assert clips.shown(decoded.frames) == expected
    assert decoded.frames.shape == (how["num_frames"], 64, 64, 3)
    assert decoded.frames.dtype == np.uint8
    assert decoded.timestamps_s == pytest.approx([starts[index] - starts[0] for index in expected], abs=1e-4)
    assert decoded.duration_s == pytest.approx(duration_s, abs=1e-4)


@pytest.mark.skipif(not video.HAS_DECORD, reason="decord has no wheel here")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_both_engines_see_the_same(suffix, tmp_path):
    rng = np.random.default_rng(0)
    starts = np.cumsum(rng.integers(20, 400, 30)) / 1000
    path = clips.write_grey(tmp_path / f"clip{suffix}", starts[:24])
    ours, theirs = (look(engine, path, 9, start_s=0.3) for engine in (video.decode_decord, video.decode_pyav))
    np.testing.assert_allclose(ours.frames.astype(int), theirs.frames.astype(int), atol=2)  # two color converters
    assert ours.timestamps_s == theirs.timestamps_s
    assert ours.duration_s == theirs.duration_s


def turned(path, degrees, num_frames=4):
    """A clip whose stored frames have a bright upper left quarter, to be shown turned counter-clockwise."""
    image = np.zeros((64, 96, 3), dtype=np.uint8)
    image[:32, :48] = 200
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.set_display_rotation(degrees)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_a_clip_shorter_than_its_decoders_delay_is_seen_upright(num_frames, tmp_path):
    path = turned(tmp_path / "clip.mp4", 90, num_frames)
    assert video.read_outline(path, MediaSettings()).rotation == 90
    assert look(video.decode_video, path, 2).frames.shape == (2, 96, 64, 3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize(
    ("degrees", "shape", "bright"),
    [(0, (64, 96), (0, 0)), (90, (96, 64), (-1, 0)), (180, (64, 96), (-1, -1)), (-90, (96, 64), (0, -1))],
)
@pytest.mark.parametrize("has_decord", [True, False])
def test_a_clip_held_sideways_is_seen_upright(suffix, degrees, shape, bright, has_decord, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "HAS_DECORD", has_decord and video.HAS_DECORD)
    frames = look(video.decode_video, turned(tmp_path / f"clip{suffix}", degrees), 2).frames
    assert frames.shape == (2, *shape, 3)
    lit = [corner for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)) if frames[1][corner].mean() > 100]
    assert lit == [bright]


def plain(path):
    """The clip EVEN as decord is trusted with: H.264 in MP4 without B-frames."""
    levels = [clips.LEVEL_STEP * (index + 1) for index in range(len(EVEN))]
    write_silent_clip(path, np.stack([np.full((64, 64, 3), level, dtype=np.uint8) for level in levels]), 10)
    return path


def test_what_decord_cannot_open_goes_to_pyav(tmp_path, monkeypatch):
    path = plain(tmp_path / "clip.mp4")
    calls = []

    def fails(*_):
        calls.append(1)
        raise RuntimeError("no such codec")

    monkeypatch.setattr(video, "HAS_DECORD", True)
    monkeypatch.setattr(video, "_by_decord", fails)
    assert clips.shown(look(video.decode_video, path, 4).frames) == [2, 7, 12, 17]
    assert calls == [1]


def test_without_decord_it_is_never_imported(tmp_path, monkeypatch):
    path = clips.write_grey(tmp_path / "clip.mp4", EVEN)
    monkeypatch.setattr(video, "HAS_DECORD", False)
    monkeypatch.setitem(sys.modules, "decord", None)
    assert clips.shown(look(video.decode_video, path, 2).frames) == [5, 15]


@pytest.mark.parametrize("content", [b"", b"no film at all\n" * 100, None], ids=["empty", "text", "truncated"])
def test_a_broken_file_is_named(content, tmp_path):
    whole = clips.write_grey(tmp_path / "whole.mp4", EVEN).read_bytes()
    path = tmp_path / "broken.mp4"
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(MediaError, match=r"broken\.mp4: video cannot be decoded .*re-encode or remove"):
        look(video.decode_video, path, 4)


def test_frames_of_garbage_are_an_error_that_names_the_file(tmp_path):
    path = clips.write_grey(tmp_path / "garbage.mp4", EVEN)
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    content[start : start + 400] = b"\xff" * 400
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"garbage\.mp4"):
        look(video.decode_video, path, 4)


def test_sound_alone_is_no_video(tmp_path):
    path = clips.write_wav(tmp_path / "a.wav", clips.tone(440, 0.5, 16_000), 16_000)
    with pytest.raises(MediaError, match=r"a\.wav: no video track; remove the <video> tag"):
        look(video.decode_video, path, 4)


@engines
@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"max_duration_s": 1.0}, r"[12]\.\d s exceed media.max_duration_s 1; cut the clip"),
        ({"max_pixels": 64 * 64 - 1}, "frames of 4096 pixels exceed media.max_pixels 4095; scale the clip down"),
        ({"start_s": 2.5}, r"span 2.5..None s is empty in a clip of 2.00 s; fix start/end"),
    ],
)
def test_limits_and_spans_are_enforced(engine, how, sentence, tmp_path):
    path = clips.write_grey(tmp_path / "clip.mp4", EVEN)
    with pytest.raises(MediaError, match=rf"clip\.mp4: {sentence}"):
        look(engine, path, 4, **how)


def with_short_lengths(source, target):
    """The same H.264 track whose units have lengths of two bytes, and a message before each picture.

    Read with lengths of four bytes, the message looks like a slice of an IDR picture.
    """
    message = bytes([0x06, 200, 5, 1, 2, 3, 4, 5, 0x80])  # SEI, a reserved type, five bytes
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        stream = container.streams.video[0]
        copy = out.add_stream_from_template(stream)
        header = bytearray(stream.codec_context.extradata)
        header[4] = 0xFC | 1
        copy.codec_context.extradata = bytes(header)
        for packet in container.demux(stream):
            if packet.pts is None:
                continue
            content, at, units = bytes(packet), 0, [message]
            while at < len(content):
                size = int.from_bytes(content[at : at + 4], "big")
                units.append(content[at + 4 : at + 4 + size])
                at += 4 + size
            short = av.Packet(b"".join(len(unit).to_bytes(2, "big") + unit for unit in units))
            short.pts, short.dts, short.duration = packet.pts, packet.dts, packet.duration
            short.time_base, short.is_keyframe, short.stream = packet.time_base, packet.is_keyframe, copy
            out.mux(short)
    return target


def test_a_track_whose_lengths_are_not_four_bytes_is_left_to_pyav(tmp_path):
    """Its key frames need earlier frames, which only the lengths that it declares tell."""
    open_groups = {"bf": "2", "g": "5", "x264-params": "open-gop=1"}
    source = clips.write_grey(tmp_path / "four.mp4", EVEN, options=open_groups)
    path = with_short_lengths(source, tmp_path / "two.mp4")
    with av.open(str(path)) as container:
        keys = [packet for packet in container.demux(video=0) if packet.is_keyframe]
        assert container.streams.video[0].codec_context.extradata[4] & 3 == 1
    assert len(keys) > 1
    assert all(video._is_closed(packet) for packet in keys)  # the negative control: as if lengths had four bytes
    assert not video.read_outline(path, MediaSettings()).simple
    assert clips.shown(look(video.decode_video, path, 4).frames) == [2, 7, 12, 17]


@pytest.mark.parametrize(
    ("extradata", "long"),
    [
        (b"\x01d\x00\x0b\xff\xe1", True),
        (b"\x01d\x00\x0b\x03", True),
        (b"\x01d\x00\x0b\xfd\xe1", False),
        (b"\x01d\x00\x0b\xfc\xe1", False),
        (b"\x00\x00\x00\x01gd", False),  # start codes, as in MPEG-TS
        (b"\x01d\x00\x0b", False),
        (b"", False),
        (None, False),
    ],
)
def test_lengths_are_as_the_header_says(extradata, long):
    assert video._has_long_lengths(extradata) is long


def two_sizes(path):
    """A recording whose picture grows from 64 to 96 pixels after ten grey frames of twenty."""
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0"})
        for part, size in enumerate((64, 96)):
            encoder = stream.codec_context
            if part:
                encoder = av.CodecContext.create("libx264", "w")
                encoder.time_base, encoder.options = Fraction(1, 10), {"bf": "0"}
            encoder.width = encoder.height = size
            encoder.pix_fmt = "yuv420p"
            packets = []
            for index in range(10 * part, 10 * part + 10):
                image = np.full((size, size, 3), clips.LEVEL_STEP * (index + 1), dtype=np.uint8)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 10)
                packets += encoder.encode(frame)
            for packet in [*packets, *encoder.encode(None)]:
                packet.stream, packet.time_base = stream, Fraction(1, 10)
                container.mux(packet)
    return path


def test_a_picture_that_changes_its_size_keeps_that_of_its_first_frame(tmp_path):
    decoded = look(video.decode_video, two_sizes(tmp_path / "a.ts"), 4)
    assert decoded.frames.shape == (4, 64, 64, 3)
    assert clips.shown(decoded.frames) == [2, 7, 12, 17]


def test_every_frame_is_held_against_the_limit_and_not_the_header(tmp_path):
    with pytest.raises(MediaError, match=r"a\.ts: frames of 9216 pixels exceed media.max_pixels 5000"):
        look(video.decode_video, two_sizes(tmp_path / "a.ts"), 4, max_pixels=5000)


def test_before_a_late_picture_its_first_frame_stands_and_it_is_said(tmp_path):
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=10)
        pictures.width = pictures.height = 64
        pictures.pix_fmt = "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=16_000)
        sound.layout = "mono"
        block = av.AudioFrame.from_ndarray(np.zeros((1, 32_000), dtype=np.int16), "s16", "mono")
        block.rate, block.pts, block.time_base = 16_000, 0, Fraction(1, 16_000)
        container.mux(sound.encode(block))
        for index in range(10):
            image = np.full((64, 64, 3), clips.LEVEL_STEP * (index + 1), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index + 10, Fraction(1, 10)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
    decoded = look(video.decode_video, path, 8)
    assert clips.shown(decoded.frames) == [0, 0, 0, 0, 1, 3, 6, 8]
    assert decoded.timestamps_s == pytest.approx([1.0, 1.0, 1.0, 1.0, 1.1, 1.3, 1.6, 1.8])
    assert decoded.duration_s == pytest.approx(2.0)
    assert decoded.warnings == (f"{path}: its picture starts 1.00 s after its sound; the first frame fills the gap",)
    within = look(video.decode_video, path, 2, start_s=0.2, end_s=0.8)
    assert (clips.shown(within.frames), within.duration_s) == ([0, 0], pytest.approx(0.6))


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_a_file_of_too_many_bytes_is_not_opened(kind, tmp_path):
    path = tmp_path / "big.mp4"
    path.write_bytes(b"x" * 101)
    task = DecodeTask(path=path, ref=MediaRef(kind=kind, path="big.mp4"), settings=MediaSettings(max_bytes=100))
    with pytest.raises(MediaError, match=r"big\.mp4: 101 bytes exceed media.max_bytes 100; cut the file"):
        decode(task)


def spoilt(path, number, change):
    """Changes the content of a packet of an H.264 clip, given its bytes."""
    with av.open(str(path)) as container:
        packet = [each for each in container.demux(video=0) if each.size][number]
        place, size = packet.pos, packet.size
    content = bytearray(path.read_bytes())
    content[place : place + size] = change(content[place : place + size])
    path.write_bytes(content)


@pytest.fixture
def groups(tmp_path):
    """18 frames; decoding may start at every fourth."""
    return clips.write_grey(tmp_path / "clip.mp4", [n / 25 for n in range(18)], options={"g": "4", "keyint_min": "4"})


def test_damage_behind_the_chosen_frames_does_not_matter_whatever_decord_meets(groups, monkeypatch):
    """It fails now and then: decord's thread reads ahead, and meets the damage before the frames are taken or not."""
    ref, settings = MediaRef(kind="video", path="x", start_s=0.0, end_s=0.58), MediaSettings(num_frames=6)
    expected = video.decode_video(groups, ref, settings)
    spoilt(groups, 16, lambda packet: packet[:5] + b"\x80" + b"\x01" * (len(packet) - 6))
    with pytest.raises(MediaError, match="cannot be decoded"):
        video.decode_video(groups, MediaRef(kind="video", path="x"), settings)
    failures = []

    def fail(*_):
        failures.append("damage")
        raise RuntimeError("damage")

    for patches in ({}, {"_by_decord": fail}):
        with monkeypatch.context() as patch:
            for name, function in patches.items():
                patch.setattr(video, name, function)
            found = video.decode_video(groups, ref, settings)
        assert np.array_equal(found.frames, expected.frames)
        assert found.timestamps_s == expected.timestamps_s
    assert failures or not video.HAS_DECORD


def test_decord_reads_no_file_whose_packets_are_not_what_h264_says(groups):
    assert video.is_safe_for_decord(video.read_outline(groups, MediaSettings()))
    spoilt(groups, 17, lambda packet: b"\x00\x00\xff\xff" + packet[4:])
    assert not video.is_safe_for_decord(video.read_outline(groups, MediaSettings()))
