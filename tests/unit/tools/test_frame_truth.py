"""A slice of the frame truth, and proof that it can fail: a wrong clock, a wrong decoder, lost and shifted sound."""

from dataclasses import replace
from pathlib import Path

import frame_truth
import numpy as np
import pytest

from lightning_mmrl.data.media import video
from lightning_mmrl.data.media.audio import decode_audio
from lightning_mmrl.data.media.video import decode_decord, decode_pyav, decode_video
from lightning_mmrl.types.media import MediaSettings

ROOT = Path(__file__).parents[3]
SECONDS = 3.5

SLICE = (
    "mp4:libx264+aac bf=2 g=25",
    "mp4:libx264+aac bf=0 g=25",
    "mp4:libx264+aac vfr bf=0 g=25",
    "mp4:libx264+aac turned bf=0 g=25",
    "mp4:libx264+aac late_sound bf=2 g=25",
    "mp4:libx264+aac late_picture bf=2 g=25",
    "mp4:libx264+aac cut bf=2 g=25",
    "mp4:libx264+aac gap bf=0 g=25",
    "mp4:libx264+aac bf=2 g=25 use_editlist=0",
    "mp4:libx264+aac bf=0 g=25 x264-params=intra-refresh=1",
    "mp4:mpeg4+aac bf=2 g=25",
    "mov:mjpeg+pcm_s16le late_picture",
    "mkv:libx264+aac gap bf=2 g=25",
    "mkv:libx264+aac cut bf=2 g=25",
    "mkv:ffv1+flac",
    "webm:libvpx+libopus late_sound g=25 cpu-used=8",
    "avi:mpeg4+libmp3lame bf=2 g=25",
    "ts:libx264+aac offset bf=2 g=25",
    "ts:libx264+aac cut bf=2 g=25",
    "mpg:mpeg2video+mp2 bf=2 g=25",
    "wmv:wmv2+wmav2 late_sound",
    "flv:libx264+aac bf=2 g=25",
    "gif:gif silent vfr",
    "webp:webp silent vfr",
)


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Writes the clip of a recipe once."""
    recipes = {recipe.name: recipe for recipe in frame_truth.RECIPES}
    folder = tmp_path_factory.mktemp("truth")
    written = {}

    def clip(name):
        if name not in written:
            path = folder / f"{len(written)}.{recipes[name].suffix}"
            written[name] = frame_truth.write_clip(path, recipes[name], SECONDS)
        return written[name]

    return clip


@pytest.mark.parametrize("name", SLICE)
def test_every_frame_and_click_is_the_one_at_its_time(name, write):
    assert frame_truth.faults(write(name)) == []


def test_the_set_is_as_wide_as_it_says():
    combinations = {(recipe.container, recipe.video, recipe.sound, recipe.edits) for recipe in frame_truth.RECIPES}
    assert len(combinations) >= 40
    assert len({recipe.container for recipe in frame_truth.RECIPES}) >= 10
    assert len({recipe.video for recipe in frame_truth.RECIPES}) >= 15
    assert len({recipe.name for recipe in frame_truth.RECIPES}) == len(frame_truth.RECIPES)


def late(path, ref, settings, by_s=0.1):
    decoded = decode_video(path, ref, settings)
    return replace(decoded, timestamps_s=tuple(time + by_s for time in decoded.timestamps_s))


def next_frames(path, ref, settings):
    decoded = decode_video(path, ref, settings)
    return replace(decoded, frames=np.roll(decoded.frames, -1, axis=0))


def late_sound(path, ref, settings, by_s=0.1):
    decoded = decode_audio(path, ref, settings)
    silence = np.zeros(round(by_s * decoded.sample_rate_hz), dtype=np.float32)
    return replace(decoded, waveform=np.concatenate([silence, decoded.waveform]))


def silent(path, ref, settings):
    decoded = decode_audio(path, ref, settings)
    return replace(decoded, waveform=np.zeros_like(decoded.waveform))


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ({"video": late}, "wrong timestamps"),
        ({"video": next_frames}, "wrong pictures"),
        ({"sound": late_sound}, "ms off"),
        ({"sound": silent}, "0 clicks"),
    ],
)
def test_what_is_100_ms_or_a_frame_off_is_found(how, word, write):
    found = frame_truth.faults(write("mp4:libx264+aac bf=0 g=25"), **how)
    assert any(word in wrong for wrong in found)


@pytest.mark.skipif(not video.HAS_DECORD, reason="decord has no wheel here")
@pytest.mark.parametrize(
    "name",
    [
        "mp4:mpeg4+aac bf=2 g=25",
        "mp4:libx264+aac bf=0 g=25 x264-params=intra-refresh=1",
        "ts:libx264+aac offset bf=2 g=25",
        "wmv:wmv2+wmav2 late_sound",
    ],
)
def test_decord_where_the_rule_forbids_it_is_wrong(name, write):
    clip = write(name)
    assert not video.is_safe_for_decord(video.read_outline(clip.path, MediaSettings()))
    assert any("wrong pictures" in wrong for wrong in frame_truth.faults(clip, video=decode_decord))
    assert frame_truth.faults(clip, video=decode_pyav) == []


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("mp4:libx264+aac bf=0 g=25", True),
        ("mp4:libx264+aac vfr bf=0 g=25", True),
        ("mp4:libx264+aac late_sound bf=0 g=25", True),
        ("mp4:libx264+aac bf=2 g=25", True),
        ("mp4:libx264+aac late_picture bf=2 g=25", True),
        ("mp4:libx264+aac cut bf=0 g=25", False),
        ("mp4:libx264+aac cut bf=2 g=25", False),
        ("mp4:libx264+aac bf=3 g=25 x264-params=open-gop=1", False),
        ("mp4:libx264+aac turned bf=0 g=25", False),
        ("mp4:mpeg4+aac bf=0 g=25", False),
        ("mkv:libx264+aac bf=2 g=25", False),
    ],
)
def test_the_rule_for_decord_is_by_facts_of_the_container(name, safe, write):
    assert video.is_safe_for_decord(video.read_outline(write(name).path, MediaSettings())) is safe
