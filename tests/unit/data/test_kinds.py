"""A file is what it holds, whatever its name says."""

from fractions import Fraction

import av
import clips
import numpy as np
import pytest
from PIL import Image

from lightning_mmrl.data.media.audio import decode_audio
from lightning_mmrl.data.media.examine import examine_tracks, held_kinds
from lightning_mmrl.data.media.guard import DecodeTask, decode
from lightning_mmrl.data.media.video import decode_video
from lightning_mmrl.data.synthetic.video_file import write_clip
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import DecodedImage
from lightning_mmrl.types.records import MediaRef

SETTINGS = MediaSettings(num_frames=4)
TIMES = [index / 10 for index in range(10)]
TONE = clips.tone(300, 1.0, 16_000)


def asked(path, **limits):
    return DecodeTask(path=path, ref=MediaRef(kind="image", path=path.name), settings=MediaSettings(**limits))


def film(path):
    write_clip(path.with_suffix(".mp4"), np.full((10, 64, 64, 3), 90, dtype=np.uint8), 10, TONE, 16_000)
    return path.with_suffix(".mp4").rename(path)


def mute(path):
    return clips.write_grey(path.with_suffix(".mp4"), TIMES).rename(path)


def sound(codec, container, cover=False):
    """Writes a tone, with a picture as cover if asked."""

    def write(path):
        with av.open(str(path), "w", format=container) as output:
            stream = output.add_stream(codec, rate=16_000)
            stream.layout = "mono"
            picture = _add_cover(output) if cover else None
            frame = av.AudioFrame.from_ndarray(TONE[None], "fltp", "mono")
            frame.rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
            resampler = av.AudioResampler(stream.codec_context.format.name, "mono", 16_000, stream.frame_size or 1024)
            packets = [packet for each in resampler.resample(frame) for packet in stream.encode(each)]
            for packet in [*packets, *stream.encode(None), *([picture] if picture else [])]:
                output.mux(packet)
        return path

    return write


def _add_cover(output):
    stream = output.add_stream("png", rate=1)
    stream.width = stream.height = 32
    stream.pix_fmt = "rgb24"
    stream.disposition = av.stream.Disposition.attached_pic
    frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 200, dtype=np.uint8), format="rgb24")
    frame.pts, frame.time_base = 0, Fraction(1, 1)
    [packet] = [*stream.encode(frame), *stream.encode(None)][:1]
    return packet


def moving(container):
    def write(path):
        images = [Image.new("RGB", (32, 24), (20 * index, 90, 30)) for index in range(5)]
        how = {"lossless": True} if container == "webp" else {}
        durations = [100, 200, 100, 400, 200]
        images[0].save(path, container, save_all=True, append_images=images[1:], duration=durations, **how)
        return path

    return write


def still(container):
    def write(path):
        Image.new("RGB", (32, 24), (200, 90, 30)).save(path, container)
        return path

    return write


def pages(path):
    Image.new("RGB", (32, 24)).save(path, "tiff", save_all=True, append_images=[Image.new("RGB", (32, 24))])
    return path


def wav(path):
    return clips.write_wav(path.with_suffix(".wav"), TONE, 16_000).rename(path)


def flac(path):
    return clips.write_wav(path.with_suffix(".flac"), TONE, 16_000).rename(path)


@pytest.mark.parametrize(
    ("name", "write", "kinds"),
    [
        ("film.wav", film, ["video", "audio"]),
        ("film.mp3", film, ["video", "audio"]),
        ("film.png", film, ["video", "audio"]),
        ("film", film, ["video", "audio"]),
        ("mute.mp3", mute, ["video"]),
        ("m4a.wav", sound("aac", "ipod"), ["audio"]),
        ("m4a.jpg", sound("aac", "ipod"), ["audio"]),
        ("wav.mp4", wav, ["audio"]),
        ("flac.mp3", flac, ["audio"]),
        ("opus.m4a", sound("libopus", "ogg"), ["audio"]),
        ("cover.mp3", sound("libmp3lame", "mp3", cover=True), ["audio"]),
        ("cover.flac", sound("flac", "flac", cover=True), ["audio"]),
        ("gif.mp4", moving("gif"), ["video"]),
        ("apng.png", moving("png"), ["video"]),
        ("webp.jpg", moving("webp"), ["video"]),
        ("avifs.avif", moving("avif"), ["video"]),
        ("gif.gif", still("gif"), ["image"]),
        ("webp.gif", still("webp"), ["image"]),
        ("avif.jpg", still("avif"), ["image"]),
        ("jpeg.mp4", still("jpeg"), ["image"]),
        ("png.wav", still("png"), ["image"]),
        ("pages.tiff", pages, ["image"]),
    ],
)
def test_the_content_decides_and_not_the_suffix(name, write, kinds, tmp_path):
    task = asked(write(tmp_path / name))
    assert held_kinds(task) == kinds
    found = examine_tracks(task)
    assert [each.kind for each in found] == kinds
    assert all(each.warnings == () for each in found)
    lasts = [each.duration_s for each in found if each.kind != "image"]
    assert lasts == pytest.approx([1.0] * len(lasts), abs=0.09)  # AAC fills its last block of 64 ms


@pytest.mark.parametrize(
    ("name", "write"), [("m4a.wav", sound("aac", "ipod")), ("cover.mp3", sound("libmp3lame", "mp3", True))]
)
def test_a_sound_of_another_name_is_heard(name, write, tmp_path):
    decoded = decode_audio(write(tmp_path / name), MediaRef(kind="audio", path=name), SETTINGS)
    assert clips.peak_hz(decoded.waveform, 16_000) == pytest.approx(300, abs=1.5)  # one bin, 1 / 1 s, and a block


@pytest.mark.parametrize("container", ["gif", "png", "webp", "avif"])
def test_a_moving_picture_shows_each_frame_for_its_time(container, tmp_path):
    path = moving(container)(tmp_path / "a")
    decoded = decode_video(path, MediaRef(kind="video", path="a"), MediaSettings(num_frames=10))
    assert decoded.timestamps_s == (0.0, 0.1, 0.1, 0.3, 0.4, 0.4, 0.4, 0.4, 0.8, 0.8)
    assert [round(float(image[..., 0].mean()) / 20) for image in decoded.frames] == [0, 1, 1, 2, 3, 3, 3, 3, 4, 4]
    assert decoded.duration_s == 1.0


def test_a_moving_picture_has_spans_and_limits(tmp_path):
    path = moving("gif")(tmp_path / "a.gif")

    def look(settings=SETTINGS, **span):
        return decode_video(path, MediaRef(kind="video", path="a.gif", **span), settings)

    assert look(start_s=0.3, end_s=0.8).timestamps_s == (0.3, 0.4, 0.4, 0.4)
    for settings, words in [
        (MediaSettings(max_duration_s=0.5), "max_duration_s"),
        (MediaSettings(max_pixels=9), "max_pixels"),
    ]:
        with pytest.raises(MediaError, match=rf"a\.gif: .*exceed media\.{words}"):
            look(settings)
    with pytest.raises(MediaError, match=r"a\.gif: span 3.0..None s is empty"):
        look(start_s=3.0)


def test_frames_of_a_gif_without_a_time_last_as_in_a_browser(tmp_path):
    images = [Image.new("RGB", (16, 16), (60 * index, 0, 0)) for index in range(4)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=0)
    assert decode_video(tmp_path / "a.gif", MediaRef(kind="video", path="a"), SETTINGS).duration_s == pytest.approx(0.4)


def test_of_a_moving_picture_that_is_asked_for_as_an_image_the_first_frame_is_seen(tmp_path):
    path = moving("gif")(tmp_path / "a.gif")
    decoded = decode(DecodeTask(path=path, ref=MediaRef(kind="image", path="a.gif"), settings=SETTINGS))
    assert isinstance(decoded, DecodedImage)


def test_a_still_picture_is_no_video(tmp_path):
    with pytest.raises(MediaError, match=r"a\.jpg: no video track, it holds a still picture; use an <image> tag"):
        decode_video(still("jpeg")(tmp_path / "a.jpg"), MediaRef(kind="video", path="a.jpg"), SETTINGS)


def test_too_many_bytes_are_refused_before_the_file_is_opened(tmp_path):
    (tmp_path / "a.mp4").write_bytes(bytes(200))
    with pytest.raises(MediaError, match=r"a\.mp4: 200 bytes exceed media\.max_bytes 100"):
        held_kinds(asked(tmp_path / "a.mp4", max_bytes=100))


@pytest.mark.parametrize("content", [b"", b"no medium at all\n" * 50])
def test_what_is_no_medium_has_no_kind(content, tmp_path):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(MediaError, match=r"a\.mp4: file cannot be decoded"):
        held_kinds(asked(tmp_path / "a.mp4"))
