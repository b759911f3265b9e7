"""Files that people had trouble with, and what is right for each; made anew for this purpose, data of nobody."""

from pathlib import Path

import numpy as np
import pytest

from lightning_mmrl.data.media.audio import decode_audio
from lightning_mmrl.data.media.examine import examine_tracks, held_kinds
from lightning_mmrl.data.media.guard import DecodeTask, decode
from lightning_mmrl.data.media.video import decode_video
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef

CASES = Path(__file__).parents[2] / "cases"
SETTINGS = MediaSettings()


def task(path):
    return DecodeTask(path=path, ref=MediaRef(kind="video", path=path.name), settings=SETTINGS)


def facts(path):
    """What `from-csv` and `validate` learn of a file, by kind."""
    return {each.kind: each for each in examine_tracks(task(path))}


def number(image):
    """The number drawn in a picture of these files: twelve bits side by side."""
    height, width = image.shape[:2]
    blocks = (
        image[4 : height // 2 - 4, (bit * 8 + 2) * width // 96 : (bit * 8 + 6) * width // 96] for bit in range(12)
    )
    return sum(1 << bit for bit, block in enumerate(blocks) if block.mean() > 128)


@pytest.mark.parametrize("name", ["h264.ts", "mp4v.mp4"])
def test_wrong_frames(name):
    decoded = decode_video(CASES / "wrong_frames" / name, MediaRef(kind="video", path=name), SETTINGS)
    assert [number(image) for image in decoded.frames] == [9, 28, 46, 65, 84, 103, 121, 140]
    assert decoded.timestamps_s == pytest.approx([0.36, 1.12, 1.84, 2.6, 3.36, 4.12, 4.84, 5.6])
    assert decoded.duration_s == pytest.approx(6.0)


def flash_and_beep(start_s, end_s):
    path = CASES / "av_offset" / "late.mp4"
    settings = MediaSettings(num_frames=100)
    seen = decode_video(path, MediaRef(kind="video", path="x", start_s=start_s, end_s=end_s), settings)
    heard = decode_audio(path, MediaRef(kind="audio", path="x", start_s=start_s, end_s=end_s), settings)
    bright = [time for time, image in zip(seen.timestamps_s, seen.frames, strict=True) if image.mean() > 150]
    loud = np.flatnonzero(np.abs(heard.waveform) > 0.2)
    return bright[0], loud[0] / heard.sample_rate_hz, seen.duration_s, heard.duration_s


def test_av_offset():
    """The sound's track begins a second after the picture's; its beep is at 5 s of its own clock."""
    flash, beep, seen_s, heard_s = flash_and_beep(None, None)
    assert flash == pytest.approx(5.0, abs=0.05)  # 100 frames out of 10 s
    assert beep == pytest.approx(6.0, abs=0.02)  # what nobody notices; see tools/truth/frame_truth.py
    assert (seen_s, heard_s) == pytest.approx((10.0, 11.0), abs=0.03)  # AAC fills its last block of 23 ms


def test_av_offset_in_a_span():
    flash, beep, seen_s, heard_s = flash_and_beep(4.5, 7.5)
    assert flash == pytest.approx(5.0, abs=0.04)  # a frame lasts as long
    assert beep == pytest.approx(6.0 - 4.5, abs=0.02)  # what nobody notices
    assert (seen_s, heard_s) == pytest.approx((3.0, 3.0), abs=1e-3)


@pytest.mark.parametrize("name", ["h264.avi", "xvid.avi"])
def test_refused_avi(name):
    found = facts(CASES / "refused_avi_mpg" / name)
    assert found.keys() == {"video"}
    assert (found["video"].duration_s, found["video"].warnings) == (pytest.approx(2.0), ())


def test_renamed_sound():
    """An MP4 file with picture and sound, named voice.mp3."""
    found = facts(CASES / "renamed_sound" / "voice.mp3")
    assert found.keys() == {"video", "audio"}
    assert found["audio"].duration_s == pytest.approx(2.04, abs=0.01)
    decoded = decode_audio(CASES / "renamed_sound" / "voice.mp3", MediaRef(kind="audio", path="x"), SETTINGS)
    assert np.abs(decoded.waveform).max() > 0.05  # sound, and not 9 ms of silence


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("anim.gif", ["video"]), ("pic.heic", ["image"]), ("pic.avif", ["image"]), ("cover.m4a", ["audio"])],
)
def test_stills_and_motion(name, kinds):
    path = CASES / "stills_and_motion" / name
    assert held_kinds(task(path)) == kinds
    assert list(facts(path)) == kinds


def test_stills_and_motion_are_seen():
    folder = CASES / "stills_and_motion"
    moving = decode_video(folder / "anim.gif", MediaRef(kind="video", path="x"), MediaSettings(num_frames=5))
    assert (moving.duration_s, moving.timestamps_s) == (1.0, (0.1, 0.3, 0.5, 0.7, 0.9))
    for name in ("pic.heic", "pic.avif"):
        task = DecodeTask(path=folder / name, ref=MediaRef(kind="image", path="x"), settings=SETTINGS)
        assert decode(task).pixels.shape == (64, 96, 3)


@pytest.mark.parametrize(("name", "decoded", "declared"), [("half.mkv", 2.36, 6.0), ("half.wav", 0.27, 2.53)])
def test_cut_off_file(name, decoded, declared):
    path = CASES / "cut_off_file" / name
    [found] = facts(path).values()
    assert found.warnings == (
        f"{path}: {decoded:.2f} s were decoded of {declared:.2f} s that the file declares; it may be cut off: "
        "fetch it again or re-encode it",
    )


def test_nan_sound():
    with pytest.raises(
        MediaError, match=r"x\.wav: its sound holds NaN or infinity \(1 of 8000 samples, .*write the sound"
    ):
        facts(CASES / "nan_sound" / "x.wav")
