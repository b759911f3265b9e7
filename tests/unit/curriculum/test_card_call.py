"""The card's own functions for media choose as the package does, for the files that the card speaks of."""

import re

import av
import clips
import numpy as np
import pytest

from lightning_mmrl.curriculum.card_frames import frames_code, in_words
from lightning_mmrl.data.media import selection
from lightning_mmrl.data.media.video import decode_pyav
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef

CODE = frames_code({"num_frames": 5})


@pytest.mark.parametrize(
    ("pattern", "constant"),
    [
        (r"times \+ (\S+), side", selection._CLOCK_S),
        (r"else (\S+)\)", selection._STILL_S),
        (r"for frame in shown\], (\d+)\)", selection._DIGITS),
    ],
    ids=["clock", "still", "digits"],
)
def test_numbers_in_the_code_are_those_of_the_selection(pattern, constant):
    [found] = re.findall(pattern, CODE)
    assert float(found) == constant


@pytest.mark.parametrize(
    "starts_s",
    [
        [index / 10 for index in range(20)],
        [0.0, 0.1, 0.2, 0.3, 1.0, 2.0, 2.1],
        [0.0],
        [0.0, 0.401, 0.7, 1.1],  # a frame that starts within the clock's tolerance
    ],
    ids=["even", "uneven", "one", "close"],
)
def test_frames_times_and_rate_are_those_of_the_package(starts_s, tmp_path):
    path = clips.write_grey(tmp_path / "clip.mp4", starts_s)
    names = {"av": av, "np": np}
    exec(compile(CODE, "card", "exec"), names)
    frames, times, rate = names["frames_of"](str(path))
    ours = decode_pyav(path, MediaRef(kind="video", path="clip.mp4"), MediaSettings(num_frames=5))
    np.testing.assert_array_equal(frames, ours.frames)
    assert times.tolist() == list(ours.timestamps_s)
    assert rate == pytest.approx(ours.sampled_fps)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"fps": 4.0}, "4 frames a second, at least 4, at most 768, chosen as qwen-vl-utils does"),
        ({"fps": 2.0, "min_frames": 5, "max_frames": 9}, "2 frames a second, at least 5, at most 9, chosen"),
        ({"frame_rule": "qwen_vl_utils"}, "7 frames, chosen as qwen-vl-utils does"),
        ({"max_frame_pixels": 784}, "7 frames, max frame pixels 784"),
    ],
    ids=str,
)
@pytest.mark.parametrize("starts_s", [[index / 10 for index in range(20)], [0.0, 0.1, 0.2, 0.3, 1.0, 2.0, 2.1, 2.5]])
def test_frames_of_other_keys_are_those_of_the_package_too(keys, words, starts_s, tmp_path):
    path = clips.write_grey(tmp_path / "clip.mp4", starts_s)
    names = {"av": av, "np": np}
    exec(compile(frames_code({"num_frames": 7, **keys}), "card", "exec"), names)
    frames, times, rate = names["frames_of"](str(path))
    ours = decode_pyav(path, MediaRef(kind="video", path="clip.mp4"), MediaSettings(num_frames=7, **keys))
    np.testing.assert_array_equal(frames, ours.frames)
    assert times.tolist() == list(ours.timestamps_s)
    assert rate == pytest.approx(ours.sampled_fps)
    assert in_words({"num_frames": 7, **keys, "max_pixels": 9}).startswith(words)
