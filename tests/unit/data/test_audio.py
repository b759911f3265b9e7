import clips
import numpy as np
import pytest

from lightning_mmrl.data.media.audio import decode_audio
from lightning_mmrl.data.synthetic.video_file import write_clip
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef


def listen(path, start_s=None, end_s=None, **settings):
    ref = MediaRef(kind="audio", path=path.name, start_s=start_s, end_s=end_s)
    return decode_audio(path, ref, MediaSettings(**settings))


@pytest.fixture
def mp4(tmp_path):
    """One second of 8 frames with a tone of 300 Hz at 16 kHz."""
    frames = np.full((8, 64, 64, 3), 90, dtype=np.uint8)
    write_clip(tmp_path / "clip.mp4", frames, 8, clips.tone(300, 1.0, 16_000), 16_000)
    return tmp_path / "clip.mp4"


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100, 48_000])
def test_stereo_at_any_rate_becomes_mono_at_16_khz(rate_hz, tmp_path):
    left, right = clips.tone(440, 1.5, rate_hz), clips.tone(440, 1.5, rate_hz)
    sound = listen(clips.write_wav(tmp_path / "a.wav", np.stack([left, right], axis=1), rate_hz))
    assert sound.sample_rate_hz == 16_000
    assert sound.waveform.shape == (24_000,)
    assert sound.waveform.dtype == np.float32
    assert sound.duration_s == 1.5
    assert clips.peak_hz(sound.waveform, 16_000) == pytest.approx(440, abs=0.7)  # one bin of the spectrum, 1 / 1.5 s
    middle = slice(1000, -1000)
    np.testing.assert_allclose(sound.waveform[middle], clips.tone(440, 1.5, 16_000)[middle], atol=5e-3)


def test_mono_is_the_mean_of_the_channels(tmp_path):
    left, right = clips.tone(440, 1.0, 16_000), clips.tone(1000, 1.0, 16_000)
    sound = listen(clips.write_wav(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000))
    np.testing.assert_allclose(sound.waveform, (left + right) / 2, atol=1e-4)


def test_a_span_is_cut_out(tmp_path):
    samples = np.concatenate([clips.tone(440, 1.0, 44_100), clips.tone(2000, 1.0, 44_100)])
    path = clips.write_wav(tmp_path / "a.wav", samples, 44_100)
    for span, hz in [((None, 1.0), 440), ((1.0, None), 2000), ((1.25, 1.75), 2000)]:
        sound = listen(path, *span)
        assert len(sound.waveform) == round(((span[1] or 2.0) - (span[0] or 0.0)) * 16_000)
        assert clips.peak_hz(sound.waveform, 16_000) == pytest.approx(hz, abs=2.0)  # one bin of half a second
    assert len(listen(path, 1.5, 99.0).waveform) == 8_000


def test_the_track_of_a_film_is_heard(mp4):
    sound = listen(mp4)
    expected = clips.tone(300, 1.0, 16_000)
    assert abs(len(sound.waveform) - len(expected)) <= 1024  # the codec works in blocks of 1024
    size = min(len(sound.waveform), len(expected))
    assert np.corrcoef(sound.waveform[:size], expected[:size])[0, 1] > 0.99
    late = np.corrcoef(sound.waveform[13:size], expected[: size - 13])[0, 1]
    assert late < 0.5  # a quarter of a period: the measure would see a shift


def test_a_film_is_resampled_and_cut(mp4):
    sound = listen(mp4, 0.25, 0.75)
    assert (sound.sample_rate_hz, len(sound.waveform)) == (16_000, 8_000)
    assert clips.peak_hz(sound.waveform, 16_000) == pytest.approx(300, abs=2.0)  # one bin of half a second


def test_a_film_without_sound_is_refused_with_the_fix(tmp_path):
    path = clips.write_grey(tmp_path / "mute.mp4", [0.0, 0.1])
    with pytest.raises(MediaError, match=r"mute\.mp4: no audio track; remove the <audio> tag or name a separate"):
        listen(path)


@pytest.mark.parametrize("name", ["a.wav", "a.mp4"])
@pytest.mark.parametrize("content", [b"", b"no sound at all\n" * 50], ids=["empty", "text"])
def test_a_broken_file_is_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MediaError, match=rf"{name}: sound cannot be decoded .*re-encode or remove"):
        listen(tmp_path / name)


def test_a_file_without_samples_is_refused(tmp_path):
    path = clips.write_wav(tmp_path / "nothing.wav", np.zeros(0, dtype=np.float32), 16_000)
    with pytest.raises(MediaError, match=r"nothing\.wav: the sound holds no samples"):
        listen(path)


def test_a_truncated_film_is_an_error_that_names_it(mp4):
    mp4.write_bytes(mp4.read_bytes()[:2000])
    with pytest.raises(MediaError, match=r"clip\.mp4: sound cannot be decoded"):
        listen(mp4)


def test_long_sound_is_refused(mp4, tmp_path):
    wav = clips.write_wav(tmp_path / "a.wav", clips.tone(440, 1.0, 16_000), 16_000)
    for path in (wav, mp4):
        with pytest.raises(MediaError, match=rf"{path.name}: its sound exceeds media.max_duration_s 0.5; cut"):
            listen(path, max_duration_s=0.5)


@pytest.mark.parametrize("span", [(1.0, None), (5.0, 6.0)])
def test_a_span_beyond_the_end_is_refused(span, tmp_path):
    path = clips.write_wav(tmp_path / "a.wav", clips.tone(440, 1.0, 16_000), 16_000)
    with pytest.raises(MediaError, match=r"a\.wav: span .* s is empty in 1.00 s of sound; fix start/end"):
        listen(path, *span)
