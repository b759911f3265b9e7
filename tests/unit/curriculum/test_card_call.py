"""The card's own functions for media choose as the package does, for the files that the card speaks of."""

import re

import av
import clips
import numpy as np
import pytest

from lightning_mmrl.curriculum import card_call
from lightning_mmrl.data.media import selection
from lightning_mmrl.data.media.video import decode_pyav
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef

CODE = card_call._FRAMES.format(num_frames=5)


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
