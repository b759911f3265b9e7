"""Samples that are no sound are refused, and what a mix to mono or a span hides is said."""

import re
from fractions import Fraction

import av
import clips
import numpy as np
import pytest
import soundfile

from lightning_mmrl.data.media.audio import decode_audio
from lightning_mmrl.data.media.examine import examine
from lightning_mmrl.data.media.guard import DecodeTask
from lightning_mmrl.data.media.video import decode_video
from lightning_mmrl.data.synthetic.video_file import write_clip
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef

TONE = clips.tone(440, 1.0, 16_000)
NOISE = np.random.default_rng(0).normal(0, 0.1, (2, 16_000)).astype(np.float32)


def listen(path, **span):
    return decode_audio(path, MediaRef(kind="audio", path=path.name, **span), MediaSettings())


def write(path, samples, subtype=None):
    """[L] or [L, channels]; .mkv and .mp4 through PyAV."""
    if path.suffix not in (".mkv", ".mp4"):
        soundfile.write(path, samples, 16_000, subtype=subtype)
        return path
    channels = np.ascontiguousarray(np.atleast_2d(samples.T), dtype=np.float32)
    layout = "mono" if len(channels) == 1 else "stereo"
    codec, layout_format = ("pcm_f32le", "flt") if path.suffix == ".mkv" else ("aac", "fltp")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16_000)
        stream.layout = layout
        frame = av.AudioFrame.from_ndarray(channels, "fltp", layout)
        frame.rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
        resampler = av.AudioResampler(layout_format, layout, 16_000, stream.frame_size or 1024)
        for each in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(each))
        container.mux(stream.encode(None))
    return path


def spoiled(value, at=4000, channels=1):
    samples = np.stack([TONE] * channels, axis=1) if channels > 1 else TONE.copy()
    samples[at, ...] = [0.0] * (channels - 1) + [value] if channels > 1 else value
    return samples


@pytest.mark.parametrize(
    ("name", "samples", "subtype"),
    [
        ("nan.wav", spoiled(np.nan), "FLOAT"),
        ("inf.wav", spoiled(np.inf), "FLOAT"),
        ("minus_inf.wav", spoiled(-np.inf), "FLOAT"),
        ("double.wav", spoiled(np.nan).astype(np.float64), "DOUBLE"),
        ("one_channel.wav", spoiled(np.nan, channels=2), "FLOAT"),
        ("nan.w64", spoiled(np.nan), "FLOAT"),
        ("nan.caf", spoiled(np.nan), "FLOAT"),
        ("nan.aiff", spoiled(np.nan), "FLOAT"),
        ("nan.mkv", spoiled(np.nan), None),
    ],
)
def test_what_is_not_finite_is_refused(name, samples, subtype, tmp_path):
    path = write(tmp_path / name, samples, subtype)
    with pytest.raises(
        MediaError, match=rf"{name}: its sound holds NaN or infinity \(1 of 16000 samples, the first at 0\.25 s\)"
    ):
        listen(path)


def test_opposite_infinities_do_not_cancel(tmp_path):
    samples = np.stack([TONE, TONE], axis=1)
    samples[4000] = np.inf, -np.inf
    with pytest.raises(MediaError, match="holds NaN or infinity"):
        listen(write(tmp_path / "a.wav", samples, "FLOAT"))


@pytest.mark.parametrize(
    ("name", "scale", "subtype"),
    [
        ("16bit.wav", 32_767, "FLOAT"),
        ("16bit_double.wav", 32_767, "DOUBLE"),
        ("24bit.wav", 2**23, "FLOAT"),
        ("quiet_16bit.wav", 400, "FLOAT"),
        ("8bit.wav", 127, "FLOAT"),
        ("16bit.aiff", 32_767, "FLOAT"),
        ("16bit.mkv", 32_767, None),
    ],
)
def test_whole_numbers_stored_as_floating_point_are_refused(name, scale, subtype, tmp_path):
    path = write(tmp_path / name, np.round(TONE * scale).astype(np.float32), subtype)
    with pytest.raises(
        MediaError, match=rf"{name}: its sound reaches [\d.e+]+ where full scale is 1, .*; divide the samples"
    ):
        listen(path)


def test_opposite_channels_in_whole_numbers_do_not_cancel(tmp_path):
    samples = np.stack([TONE, -TONE], axis=1) * 32_767
    with pytest.raises(MediaError, match="where full scale is 1"):
        listen(write(tmp_path / "a.wav", samples, "FLOAT"))


@pytest.mark.parametrize("gain", [1.0, 3.0, 12.0])
@pytest.mark.parametrize("name", ["a.wav", "a.mkv"])
def test_an_overshoot_is_left_as_it_is(name, gain, tmp_path):
    decoded = listen(write(tmp_path / name, TONE * gain, "FLOAT" if name == "a.wav" else None))
    np.testing.assert_allclose(decoded.waveform, TONE * gain, rtol=1e-6)
    assert decoded.warnings == ()


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.aiff", "a.ogg", "a.mkv", "a.mp4"])
def test_channels_that_cancel_are_warned_about(name, tmp_path):
    path = write(tmp_path / name, np.stack([TONE, -TONE], axis=1))
    assert listen(path).warnings == (
        f"{path}: its channels cancel in the mix to mono, as if one had reversed polarity; invert that channel",
    )


def test_channels_that_almost_cancel_are_warned_about(tmp_path):
    path = write(tmp_path / "a.wav", np.stack([TONE, -TONE + 0.05 * NOISE[0]], axis=1))
    assert "channels cancel" in listen(path).warnings[0]


@pytest.mark.parametrize(
    "channels",
    [
        [TONE],
        [TONE, TONE],
        [TONE, 0.2 * TONE],
        [TONE, 0 * TONE],
        list(NOISE),
        [TONE, -0.5 * TONE],
        [0 * TONE, 0 * TONE],
    ],
    ids=["mono", "same", "louder", "one_silent", "unrelated", "half", "silence"],
)
def test_other_channels_are_not(channels, tmp_path):
    assert listen(write(tmp_path / "a.wav", np.stack(channels, axis=1))).warnings == ()


def test_stereo_in_a_film_is_as_loud_as_in_a_sound_file(tmp_path):
    same = np.stack([TONE, TONE], axis=1)
    peaks = [np.abs(listen(write(tmp_path / name, same)).waveform[2000:14_000]).max() for name in ("a.wav", "a.mp4")]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.02)  # AAC is not exact; a sum in place of the mean is 1.41 as loud


def film(path):
    write_clip(path, np.full((20, 64, 64, 3), 90, dtype=np.uint8), 10, clips.tone(300, 2.0, 16_000), 16_000)
    return path


@pytest.mark.parametrize(
    ("name", "kind", "end_s", "warned"),
    [
        ("a.wav", "audio", 1.5, True),
        ("a.wav", "audio", 1.05, False),
        ("a.wav", "audio", None, False),
        ("a.mp4", "audio", 9.0, True),
        ("a.mp4", "video", 9.0, True),
        ("a.mp4", "video", 2.05, False),
        ("a.mp4", "video", 1.0, False),
        ("a.mp4", "audio", 2.05, False),
    ],
)
def test_an_end_beyond_the_medium_is_warned_about(name, kind, end_s, warned, tmp_path):
    path = write(tmp_path / name, TONE) if name == "a.wav" else film(tmp_path / name)
    ref = MediaRef(kind=kind, path=name, start_s=0.2, end_s=end_s)
    facts = examine(DecodeTask(path=path, ref=ref, settings=MediaSettings()))
    found = [warning for warning in facts.warnings if "beyond" in warning]
    assert len(found) == warned
    if warned:
        whole = "1.00" if name == "a.wav" else "2.0[05]"
        late = f"end {end_s:g} s is later than the {whole} s that its {kind} lasts; change this end"
        sentence = rf"{re.escape(str(path))}: {late}"
        assert re.fullmatch(sentence, found[0])


def test_an_end_beyond_a_picture_that_pyav_decodes_is_warned_about(tmp_path):
    path = clips.write_grey(tmp_path / "a.mkv", [index / 10 for index in range(10)])
    decoded = decode_video(path, MediaRef(kind="video", path="a.mkv", end_s=5.0), MediaSettings())
    assert decoded.warnings == (f"{path}: end 5 s is later than the 1.00 s that its video lasts; change this end",)
