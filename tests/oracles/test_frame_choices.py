"""Frames and sizes equal the ones that qwen-vl-utils and qwen-omni-utils chose; `tools/golden` says how."""

import hashlib
import json
from pathlib import Path

import clips
import numpy as np
import pytest
import record_frame_choices
import torch
from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize as transformers_resize

from lightning_mmrl.data.media.selection import frames_on_show, select_frames
from lightning_mmrl.data.media.sizes import evenly, frame_bounds, smart_resize
from lightning_mmrl.data.media.sizing import sized_image
from lightning_mmrl.data.media.video import HAS_DECORD, decode_pyav, decode_video
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import DecodedImage, OwnSizes
from lightning_mmrl.types.records import MediaRef

RECORDED = json.loads((Path(__file__).parent / "frame_choices.json").read_text())
CLIP = Path("clip.mp4")
NAMES = {"nframes": "num_frames", "min_pixels": "min_frame_pixels", "max_pixels": "max_frame_pixels"}


def theirs(patch):
    """The bounds that the packages take where none is given; `frame[1]` is cut to 768 tokens anyway."""
    square = (2 * patch) ** 2
    return OwnSizes(shown_by="Qwen", factor=2 * patch, image=(4 * square, 16_384 * square), frame=(128 * square, 2**40))


def asked(case):
    """A case of the packages as our settings and span."""
    keys = {NAMES.get(key, key): value for key, value in case["keys"].items() if not key.startswith("video_")}
    span = {f"{end}_s": case["keys"].get(f"video_{end}") for end in ("start", "end")}
    settings = MediaSettings(frame_rule="qwen_vl_utils", max_duration_s=10_000.0, **keys)
    return settings, MediaRef(kind="video", path=CLIP.name, **span)


def choose(case, starts_s=None):
    """What we choose of a clip that exists as numbers alone; None if we refuse it."""
    settings, ref = asked(case)
    starts_s = np.arange(case["frames"]) / case["rate"] if starts_s is None else starts_s
    try:
        chosen = select_frames(CLIP, starts_s, ref, settings, case["rate"])
        bounds = frame_bounds(len(chosen.indices), settings, theirs(case["patch"]))
        size = smart_resize(*case["size"], 2 * case["patch"], *bounds)
    except MediaError:
        return None
    rate = len(chosen.indices) / chosen.duration_s
    return record_frame_choices.shortened(chosen.indices), list(size), pytest.approx(rate, rel=1e-12)


def found(case):
    """What they chose."""
    return None if case["found"] is None else tuple(case["found"][key] for key in ("indices", "size", "sampled_fps"))


def refused_later(case):
    """Whether they chose a side of 0 pixels, which their resizing refuses."""
    known = case["found"]
    size = known["size"] if isinstance(known, dict) else known
    return known is not None and 0 in size


def test_the_table_holds_what_is_hard():
    """Each kind of case is there, so that none of the tests below passes on easy cases alone."""
    sizes, of_clips = RECORDED["sizes"], RECORDED["clips"]
    assert len(sizes) + len(of_clips) > 500
    assert dict(RECORDED["versions"]) == {"qwen_vl_utils": "0.0.14", "qwen_omni_utils": "0.0.9"}
    assert sum(case["found"] is None for case in sizes) > 10
    assert sum(refused_later(case) for case in sizes) >= 3
    assert {"fps", "nframes", "total_pixels", "video_start"} <= {key for case in of_clips for key in case["keys"]}
    assert sum(case["found"] is None for case in of_clips) > 10
    assert any(case["found"] and case["found"]["indices"][0] == 768 for case in of_clips)


def test_sizes_are_the_packages_own():
    differing = 0
    for case in RECORDED["sizes"]:
        try:
            ours = list(smart_resize(*case["size"], case["factor"], *case["bounds"]))
        except MediaError:
            ours = None
        assert ours == (None if refused_later(case) else case["found"]), case
        try:
            differing += list(transformers_resize(*case["size"], case["factor"], *case["bounds"])) != case["found"]
        except ValueError:
            differing += case["found"] is not None
    assert differing > 10, "the table does not tell the packages from transformers"


def test_pictures_have_the_packages_own_pixels():
    for case in RECORDED["pictures"]:
        pixels = np.random.default_rng(case["seed"]).integers(0, 256, (*case["size"], 3), dtype=np.uint8)
        settings = MediaSettings(min_image_pixels=case["bounds"][0], max_image_pixels=case["bounds"][1])
        shown = sized_image(CLIP, DecodedImage(pixels=pixels), settings, theirs(14))
        assert shown.resized_from == tuple(case["size"])
        assert list(shown.pixels.shape[:2]) == case["found"]["size"]
        assert hashlib.sha256(shown.pixels.tobytes()).hexdigest() == case["found"]["sha256"]


def test_clips_have_the_packages_own_frames_sizes_and_rates():
    for case in RECORDED["clips"]:
        assert choose(case) == (None if refused_later(case) else found(case)), case


def test_a_varying_frame_rate_changes_no_index():
    """The packages know a clip's number of frames and its average rate alone."""
    checked = 0
    for case in RECORDED["clips"]:
        if "video_start" in case["keys"] or case["frames"] < 3:
            continue
        even = np.arange(case["frames"]) / case["rate"]
        late = np.sort(even + np.random.default_rng(0).uniform(0, 0.9 / case["rate"], case["frames"]))
        assert choose(case, late) == (None if refused_later(case) else found(case)), case
        checked += 1
    assert checked > 100


def test_the_middles_of_segments_are_other_frames():
    """The rule of `num_frames` alone: were both the same, the table would test nothing."""
    cases = [case for case in RECORDED["clips"] if case["found"] and "video_start" not in case["keys"]]
    cases = [case for case in cases if len(case["found"]["indices"]) > 2]
    for case in cases:
        starts_s, number = np.arange(case["frames"]) / case["rate"], case["found"]["indices"]
        middles = frames_on_show(starts_s, 0.0, case["frames"] / case["rate"], len(number))
        if case["frames"] > 2 * len(number):
            assert list(middles) != number


def test_even_frames_are_the_ones_of_linspace():
    rng, exact = np.random.default_rng(0), 0
    for _ in range(2000):
        first, length = int(rng.integers(0, 50)), int(rng.integers(2, 30_000))
        number = int(rng.integers(2, min(length, 768) + 1))
        last = first + length - 1
        wanted = torch.linspace(first, last, number).round().long().tolist()
        assert evenly(first, last, number) == wanted
        exact += np.linspace(first, last, number).round().tolist() == wanted
    assert exact < 2000, "float64 would do as well"


@pytest.mark.parametrize("decode", [decode_video, decode_pyav])
@pytest.mark.parametrize("case", RECORDED["files"][:-1], ids=lambda case: f"{case['name']}-{'-'.join(case['keys'])}")
def test_files_are_read_as_the_packages_read_them(case, decode, tmp_path):
    if decode is decode_video and not HAS_DECORD:
        pytest.skip("decode_video is decode_pyav here")
    path = clips.write_grey(tmp_path / CLIP.name, case["starts_s"], options={"bf": "0"})
    settings, ref = asked(case)
    if case["found"] is None:
        with pytest.raises(MediaError, match=r"clip\.mp4: too few frames \(\d\)"):
            decode(path, ref, settings)
        return
    video = decode(path, ref, settings)
    assert clips.shown(video.frames) == case["found"]["indices"]
    assert video.timestamps_s == pytest.approx([case["starts_s"][index] for index in case["found"]["indices"]])
    assert video.sampled_fps == pytest.approx(case["found"]["sampled_fps"], rel=1e-9)
    size = smart_resize(*video.frames.shape[1:3], 28, *frame_bounds(len(video.frames), settings, theirs(14)))
    assert list(size) == case["found"]["size"]


def test_a_span_ends_with_the_frame_that_starts_in_it(tmp_path):
    """The packages take time times the average rate, which the last frame's short duration raises to 4.145."""
    case = RECORDED["files"][-1]
    settings, ref = asked(case)
    path = clips.write_grey(tmp_path / CLIP.name, case["starts_s"], options={"bf": "0"})
    video = decode_video(path, ref, settings)
    assert case["keys"]["video_end"] < case["starts_s"][case["found"]["indices"][-1]]
    assert clips.shown(video.frames) == [5, 8, 10, 13, 15, 18]
