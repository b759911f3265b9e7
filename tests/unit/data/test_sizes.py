"""Keys of frames and sizes: what decoders do by them, and what they refuse. The arithmetic has its own oracle."""

import tracemalloc
from pathlib import Path

import av
import clips
import numpy as np
import pytest
from PIL import Image

from lightning_mmrl.data.media.examine import examine
from lightning_mmrl.data.media.guard import DecodeTask, decode
from lightning_mmrl.data.media.selection import select_frames
from lightning_mmrl.data.media.sizes import check_sizes, frame_bounds
from lightning_mmrl.data.synthetic.video_file import write_silent_clip
from lightning_mmrl.errors import ConfigError, MediaError
from lightning_mmrl.settings.data import FRAME_KEYS, MediaSettings
from lightning_mmrl.types.media import OwnSizes
from lightning_mmrl.types.records import MediaRef

OWN = OwnSizes(shown_by="Qwen2.5-VL", factor=28, image=(3136, 12_845_056), frame=(3136, 12_845_056))
SHARED = OwnSizes(shown_by="Qwen3-VL", factor=32, image=(65_536, 2**24), frame=(4096, 25_165_824), per_clip=True)
CLIP = Path("a.mp4")


def task(path, own=OWN, kind="video", span=(None, None), **keys):
    ref = MediaRef(kind=kind, path=path.name, start_s=span[0], end_s=span[1])
    return DecodeTask(path=path, ref=ref, settings=MediaSettings(**keys), own=own)


@pytest.fixture
def clip(tmp_path):
    """24 frames of 64 x 64, 25 a second."""
    return clips.write_grey(tmp_path / "a.mp4", [index / 25 for index in range(24)])


def test_without_keys_nothing_is_resized(clip):
    assert MediaSettings().chosen == {}
    plain, with_own = decode(task(clip, own=None)), decode(task(clip))
    assert plain.resized_from is with_own.resized_from is None
    assert np.array_equal(plain.frames, with_own.frames)


def test_every_key_is_chosen_where_it_is_set():
    for name in FRAME_KEYS:
        value = "qwen_vl_utils" if name == "frame_rule" else 4
        assert MediaSettings(**{name: value}).chosen == {name: value}


@pytest.mark.parametrize(
    ("keys", "size"),
    [
        ({"max_frame_pixels": 3136}, (56, 56)),
        ({"min_frame_pixels": 10_000, "max_frame_pixels": 20_000}, (112, 112)),
        ({"total_pixels": 8 * 784}, (28, 28)),
        ({"min_frame_pixels": 784, "total_pixels": 4 * 3136}, (56, 56)),
    ],
)
def test_frames_get_their_size_in_the_worker(clip, keys, size):
    found = decode(task(clip, num_frames=8, **({"min_frame_pixels": 784} | keys)))
    assert found.frames.shape == (8, *size, 3)
    assert found.resized_from == (64, 64)
    assert clips.shown(found.frames) == clips.shown(decode(task(clip)).frames)
    assert found.warnings == ()


def test_a_model_without_sizes_leaves_frames_as_they_are(clip):
    found = decode(task(clip, own=None, max_frame_pixels=3136))
    assert found.frames.shape[1:3] == (64, 64)
    assert found.resized_from is None


def test_pictures_and_frames_have_keys_of_their_own(clip, tmp_path):
    Image.fromarray(np.zeros((100, 200, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    keys = {"min_image_pixels": 784, "max_image_pixels": 6000}
    assert decode(task(clip, **keys)).resized_from is None
    found = decode(task(tmp_path / "a.png", kind="image", **keys))
    assert (found.pixels.shape, found.resized_from) == ((28, 84, 3), (100, 200))
    assert decode(task(tmp_path / "a.png", kind="image", max_frame_pixels=3136)).resized_from is None


def test_moving_pictures_are_clips_with_a_rate(tmp_path):
    levels = [Image.fromarray(np.full((64, 64, 3), clips.LEVEL_STEP * (index + 1), np.uint8)) for index in range(20)]
    levels[0].save(tmp_path / "a.gif", save_all=True, append_images=levels[1:], duration=100)
    found = decode(task(tmp_path / "a.gif", fps=2.0, max_frame_pixels=3136))
    assert clips.shown(found.frames) == [0, 6, 13, 19]
    assert (found.sampled_fps, found.frames.shape[1:3], found.resized_from) == (2.0, (56, 56), (64, 64))


def test_a_turned_clip_is_sized_as_it_is_shown(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for _ in range(8):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 128, 3), dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert decode(task(path, max_frame_pixels=4000)).frames.shape[1:3] == (28, 84)


def test_the_facts_of_a_clip_are_of_its_file(clip):
    assert examine(task(clip, max_frame_pixels=3136)).size == (64, 64)


def test_frames_that_cannot_share_the_pixels_are_said(clip):
    found = decode(task(clip, num_frames=8, min_frame_pixels=3136, total_pixels=4 * 784))
    assert found.frames.shape[1:3] == (56, 56)
    [warning] = found.warnings
    assert warning.startswith(f"{clip}: 8 frames of 56 x 56 pixels")
    assert "exceed data.media.total_pixels 3136; lower min_frame_pixels or the number of frames" in warning


@pytest.mark.parametrize(
    ("shape", "keys", "message"),
    [
        ((4, 1000), {"max_image_pixels": 9408}, r"1000 x 4 pixels have sides in a ratio above 200"),
        ((20, 1000), {"max_image_pixels": 3136}, r"1000 x 20 pixels have no size of at most 3136 pixels"),
    ],
)
def test_a_picture_without_any_size_is_refused_by_name(tmp_path, shape, keys, message):
    Image.fromarray(np.zeros((*shape, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match=rf"a\.png: {message}"):
        decode(task(tmp_path / "a.png", kind="image", **keys))


@pytest.mark.parametrize(
    ("span", "keys", "message"),
    [
        ((0.3, 0.33), {"fps": 2.0}, r"too few frames in its span \(1\): data.media.fps takes at least 2"),
        ((0.31, 0.315), {"fps": 2.0}, r"too few frames in its span \(0\)"),
        ((None, 0.1), {"frame_rule": "qwen_vl_utils"}, r"in its span \(3\) for data.media.num_frames 8; lower it, or"),
    ],
)
def test_a_span_with_too_few_frames_is_refused_by_name(clip, span, keys, message):
    with pytest.raises(MediaError, match=rf"a\.mp4: .*{message}"):
        decode(task(clip, span=span, **keys))


@pytest.mark.parametrize(
    ("starts_s", "rate", "span", "seconds"),
    [
        (np.arange(300) / 30, 30.0, (None, None), 10.0),
        (np.arange(300) / 30, 1000.0, (None, None), 10.0),  # a rate that no frame has
        (np.arange(300) / 30, 25.0, (None, None), 12.0),  # the last frame may last
        (np.concatenate([np.arange(10), 10 + np.arange(300) / 30]), 310 / 20, (10.0, 20.0), 10.0),  # a faster part
        (np.concatenate([np.arange(10), 10 + np.arange(300) / 30]), 310 / 20, (0.0, 9.5), 10.0),  # a slower part
    ],
)
def test_a_rate_that_the_clock_contradicts_is_not_used(starts_s, rate, span, seconds):
    ref = MediaRef(kind="video", path=CLIP.name, start_s=span[0], end_s=span[1])
    found = select_frames(CLIP, starts_s, ref, MediaSettings(fps=1.0), rate)
    assert abs(found.duration_s - seconds) <= 1 / 29  # the frame at the end of the span
    assert len(found.indices) == int(found.duration_s + 1e-6) // 2 * 2


@pytest.mark.parametrize(
    ("own", "keys", "message"),
    [
        (OWN, {"max_image_pixels": 700}, "max_image_pixels is 700, and one token takes 28 x 28 pixels of Qwen2.5-VL;"),
        (OWN, {"max_frame_pixels": 783}, "max_frame_pixels is 783, .*must be at least 784"),
        (SHARED, {"total_pixels": 1000}, "total_pixels is 1000, and one token takes 32 x 32 pixels of Qwen3-VL"),
        (OWN, {"max_frame_pixels": 602_113}, "a frame has at most 768 tokens of 28 x 28 .*must be at most 602112"),
        (OWN, {"max_image_pixels": 2000}, "max_image_pixels is 2000, and the processor of Qwen2.5-VL takes at least"),
        (OWN, {"max_frame_pixels": 2000}, "at least 3136; set data.media.min_frame_pixels too"),
        (
            OWN,
            {"min_image_pixels": 2**24},
            "min_image_pixels is 16777216, and .* at most 12845056.*max_image_pixels too",
        ),
    ],
)
def test_sizes_that_the_model_cannot_show_are_refused_by_key(own, keys, message):
    with pytest.raises(ConfigError, match=rf"data\.media\..*{message}"):
        check_sizes(MediaSettings(**keys), own)


@pytest.mark.parametrize("own", [OWN, SHARED, None])
def test_other_sizes_pass(own):
    check_sizes(MediaSettings(), own)
    check_sizes(MediaSettings(min_frame_pixels=784, max_frame_pixels=2048, max_image_pixels=2**20), own)


def test_bounds_of_a_whole_clip_are_shared_by_its_frames():
    assert frame_bounds(8, MediaSettings(min_frame_pixels=1024), SHARED) == (1024, 768 * 1024)
    assert frame_bounds(7, MediaSettings(max_frame_pixels=9000), SHARED) == (512, 9000)
    assert frame_bounds(400, MediaSettings(min_frame_pixels=1024), SHARED)[1] == 25_165_824 // 400


def test_only_the_reduced_frames_are_kept(tmp_path):
    """40 frames of 1280 x 720 are 105 MiB; as 448 x 252 they are 13, beside the frame at hand."""
    path = tmp_path / "a.mp4"
    write_silent_clip(path, np.zeros((40, 720, 1280, 3), dtype=np.uint8), 30)
    peaks = []
    for keys in ({}, {"max_frame_pixels": 120_000}):
        tracemalloc.start()
        decode(task(path, num_frames=40, **keys))
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    assert peaks[0] > 105
    assert peaks[1] < 30
