"""Half of a file is used and warned about, and a header that exaggerates refuses nothing."""

import struct
from pathlib import Path

import clips
import numpy as np
import pytest
import soundfile
import truth_clips
from PIL import Image
from truth_recipes import RECIPES

from lightning_mmrl.data.media.audio import decode_audio
from lightning_mmrl.data.media.examine import examine_tracks
from lightning_mmrl.data.media.guard import DecodeTask
from lightning_mmrl.data.media.video import decode_video
from lightning_mmrl.errors import MediaError
from lightning_mmrl.types.media import MediaSettings
from lightning_mmrl.types.records import MediaRef

ROOT = Path(__file__).parents[3]
NOISE = np.random.default_rng(0).normal(0, 0.1, 3 * 16_000).astype(np.float32)


def found(path, **limits):
    ref = MediaRef(kind="video", path=path.name)
    return examine_tracks(DecodeTask(path=path, ref=ref, settings=MediaSettings(**limits)))


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Whole clips of 3.5 s by recipe, written once."""
    folder = tmp_path_factory.mktemp("films")
    return {
        name: truth_clips.write_clip(folder / f"{number}.{name.split(':')[0]}", recipe, 3.5).path
        for number, name in enumerate(FILMS)
        for recipe in RECIPES
        if recipe.name == name
    }


FILMS = (
    "mp4:libx264+aac bf=2 g=25 movflags=faststart",
    "webm:libvpx+libopus g=25 cpu-used=8",
    "avi:mpeg4+libmp3lame bf=2 g=25",
    "wmv:wmv2+wmav2",
    "flv:libx264+aac bf=2 g=25",
    "mp4:libx264+aac cut bf=2 g=25",
    "mp4:libx264+aac late_sound bf=2 g=25",
    "ts:libx264+aac gap bf=2 g=25",
)


@pytest.mark.parametrize("name", FILMS[:5])
def test_half_of_a_film_is_warned_about(name, films, tmp_path):
    whole = films[name].read_bytes()
    path = tmp_path / f"half{films[name].suffix}"
    path.write_bytes(whole[: int(0.6 * len(whole))])
    facts = found(path)
    assert [each.kind for each in facts] == ["video", "audio"]
    for each in facts:
        assert each.duration_s < 2.6
        [warning] = each.warnings
        assert warning.startswith(f"{path}: {each.duration_s:.2f} s were decoded of 3.")
        assert "it may be cut off" in warning


@pytest.mark.parametrize("name", FILMS)
def test_a_whole_film_is_not_warned_about(name, films):
    assert [each.warnings for each in found(films[name])] == [(), ()]


@pytest.mark.parametrize("suffix", ["wav", "aiff", "flac", "mp3"])
def test_half_of_a_sound_is_warned_about(suffix, tmp_path):
    whole = tmp_path / f"whole.{suffix}"
    soundfile.write(whole, NOISE, 16_000)
    path = tmp_path / f"half.{suffix}"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    [facts] = found(path)
    [warning] = facts.warnings
    assert warning.startswith(f"{path}: {facts.duration_s:.2f} s were decoded of ")
    assert facts.duration_s < 1.6
    assert found(whole)[0].warnings == ()


@pytest.fixture(scope="module")
def gif(tmp_path_factory):
    """A GIF of four frames, and where each frame's blocks end."""
    path = tmp_path_factory.mktemp("gif") / "whole.gif"
    images = [Image.fromarray(np.full((8, 8, 3), 60 * index, dtype=np.uint8)) for index in range(4)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=200)
    content = path.read_bytes()
    starts = [at for at in range(len(content)) if content[at:].startswith(b"\x21\xf9\x04")]
    assert len(starts) == 4
    return content, [*starts[1:], len(content) - 1]


@pytest.mark.parametrize("num", [1, 2, 3, 4])
@pytest.mark.parametrize("filling", [b"", b"\x00" * 600], ids=["short", "filled with zeros"])
def test_a_gif_that_is_cut_between_two_frames_is_warned_about(num, filling, gif, tmp_path):
    content, ends = gif
    path = tmp_path / "cut.gif"
    path.write_bytes(content[: ends[num - 1]] + filling)
    [facts] = found(path)
    assert facts.kind == ("image" if num == 1 else "video")
    assert facts.duration_s == (None if num == 1 else pytest.approx(0.2 * num))
    assert facts.warnings == (
        f"{path}: it stops before the end that a GIF declares; it may be cut off: fetch it again or re-encode it",
    )


def test_a_gif_that_is_cut_anywhere_is_refused_or_warned_about(gif, tmp_path):
    content, ends = gif
    path = tmp_path / "cut.gif"
    for end in (ends[0] + more for more in range(60)):  # all of a frame's headers
        path.write_bytes(content[:end])
        try:
            facts = found(path)
        except MediaError:
            continue
        assert all("it may be cut off" in each.warnings[-1] for each in facts), end


@pytest.mark.parametrize("after", [b"", b"\x00" * 600, b"made by a camera"])
def test_a_whole_gif_is_not_warned_about(after, gif, tmp_path):
    path = tmp_path / "whole.gif"
    path.write_bytes(gif[0] + after)
    [facts] = found(path)
    assert (facts.kind, facts.duration_s, facts.warnings) == ("video", pytest.approx(0.8), ())


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF024])
def test_a_sound_written_to_a_pipe_declares_nothing(size, tmp_path):
    path = clips.write_wav(tmp_path / "a.wav", NOISE, 16_000)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 4, size)
    struct.pack_into("<I", content, 40, 0xFFFFFFFF)
    path.write_bytes(content)
    [facts] = found(path)
    assert (facts.duration_s, facts.warnings) == (pytest.approx(3.0, abs=0.01), ())


def exaggerate(content, name):
    """A header that promises days."""
    if name == "flac":  # 36 bits of samples, from the low half of byte 21 on
        content[21] |= 0x0F
        content[22:26] = b"\xff" * 4
    elif name == "wav":
        struct.pack_into("<I", content, 4, 0x7000_0000)
        struct.pack_into("<I", content, 40, 0x7000_0000 - 36)
    elif name == "mp4":
        at = content.index(b"mvhd") + 4
        struct.pack_into(">I", content, at + 16, 0x7FFF_FFFF)
    elif name == "avi":
        at = content.index(b"avih") + 8
        struct.pack_into("<I", content, at + 16, 0x0FFF_FFFF)
        at = content.index(b"strh") + 8
        struct.pack_into("<I", content, at + 32, 0x0FFF_FFFF)
    elif name == "mkv":
        at = content.index(b"\x44\x89\x88") + 3
        struct.pack_into(">d", content, at, 1e12)
    return content


@pytest.mark.parametrize("name", ["flac", "wav", "mp4", "avi", "mkv"])
def test_a_header_that_promises_days_refuses_nothing(name, tmp_path):
    path = tmp_path / f"a.{name}"
    if name in ("flac", "wav"):
        soundfile.write(path, NOISE, 16_000)
    else:
        clips.write_grey(path, [index / 10 for index in range(20)], codec="mpeg4")
    seconds = found(path)[0].duration_s
    path.write_bytes(exaggerate(bytearray(path.read_bytes()), name))
    [facts] = found(path)
    assert facts.duration_s == pytest.approx(seconds)


def test_the_limit_is_on_what_is_decoded(films, tmp_path):
    for name in (FILMS[0], FILMS[2], FILMS[3]):
        with pytest.raises(MediaError, match=r"exceeds? media\.max_duration_s 1"):
            found(films[name], max_duration_s=1.0)


def test_two_recordings_end_to_end_are_refused(films, tmp_path):
    content = films["ts:libx264+aac gap bf=2 g=25"].read_bytes()
    (tmp_path / "two.ts").write_bytes(content + content)
    with pytest.raises(MediaError, match=r"two\.ts: its clock jumps from 3\.\d\d s back to 0\.\d\d s; re-encode it"):
        found(tmp_path / "two.ts")


def test_a_recording_that_is_joined_midway_keeps_its_clock(films, tmp_path):
    content = films["ts:libx264+aac gap bf=2 g=25"].read_bytes()
    start = 188 * (len(content) // 188 // 4)
    path = tmp_path / "midway.ts"
    path.write_bytes(content[start:-77])
    picture = decode_video(path, MediaRef(kind="video", path="x"), MediaSettings(num_frames=20))
    sound = decode_audio(path, MediaRef(kind="audio", path="x"), MediaSettings())
    shifts = [
        truth_clips.read(image) / 25 - time for image, time in zip(picture.frames, picture.timestamps_s, strict=True)
    ]
    assert 0.5 < min(shifts) < 1.5  # a quarter of 3.5 s is missing
    assert shifts == pytest.approx([shifts[0]] * 20, abs=1e-3)
    loud = np.flatnonzero(np.abs(sound.waveform) > 0.2) / 16_000
    clicks = [time for time in truth_clips.click_times_s(3.5) if time > shifts[0] and not 1.9 < time < 3.1]
    first_s, last_s = clicks[0] - shifts[0], clicks[-1] - shifts[0] + 0.01
    assert [loud[0], loud[-1]] == pytest.approx([first_s, last_s], abs=0.02)  # what nobody notices, as in the tool
