"""Patches are kept as bytes and normalized by the backbone: the result is that of the family's own processor."""

from dataclasses import replace

import families
import numpy as np
import omni
import pytest
import torch

from lightning_mmrl.models.families.qwen_vision import normalized
from lightning_mmrl.rollout.engine_inputs import engine_prompts
from lightning_mmrl.types.batches import MediaInputs
from lightning_mmrl.types.media import DecodedImage, DecodedVideo

SEEING = ("qwen2_5_omni", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SIZES = ((56, 56), (64, 96), (200, 40), (31, 77), (360, 640))
"""Heights and widths, of which the processors enlarge, reduce or stretch all but perhaps one."""
COLORS = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
"""The colors of CLIP, which differ; the tiny Qwen3-VL has the same ones for all three."""


@pytest.fixture(scope="module", params=SEEING)
def model(request, tmp_path_factory):
    encoder, policy = families.load(request.param, families.build(request.param, tmp_path_factory.mktemp("model")))
    for process in (encoder.processor.image_processor, encoder.processor.video_processor):
        process.image_mean, process.image_std = COLORS["image_mean"], COLORS["image_std"]
    return encoder, policy


def picture(size):
    return np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), dtype=np.uint8)


def both_of_picture(encoder, size):
    """Our encoding of a picture, and the processor's."""
    pixels = picture(size)
    theirs = encoder.processor.image_processor(images=[pixels], input_data_format="channels_last", return_tensors="pt")
    return encoder.encode_image(DecodedImage(pixels=pixels)), theirs["pixel_values"]


def both_of_clip(encoder, size):
    """Our encoding of a clip, and the processor's; the last frame fills its pair."""
    frames = np.stack([np.roll(picture(size), shift, axis=1) for shift in range(3)])
    clip = DecodedVideo(frames=frames, timestamps_s=(0.1, 0.2, 0.3), duration_s=0.5)
    how = {"input_data_format": "channels_last", "do_sample_frames": False, "return_tensors": "pt"}
    return encoder.encode_video(clip), encoder.processor.video_processor(videos=[frames], **how)["pixel_values_videos"]


@pytest.mark.parametrize("size", SIZES)
def test_bytes_become_the_processors_patches_to_the_last_bit(model, size):
    encoder, _ = model
    for ours, theirs in (both_of_picture(encoder, size), both_of_clip(encoder, size)):
        [key] = [key for key in ours if key.startswith("pixel_values")]
        assert ours[key].dtype == torch.uint8
        assert theirs.dtype == torch.float32
        assert torch.equal(normalized(ours)[key], theirs)


def test_another_formula_or_order_of_colors_is_not_equal(model):
    """The negative controls: what equals is decided by rounding, and by the color that each value belongs to."""
    encoder, _ = model
    ours, theirs = both_of_picture(encoder, (64, 96))
    colors = ours["pixel_values"].unflatten(1, (3, -1)).float()
    mean, deviation = (torch.tensor(COLORS[key])[:, None] for key in ("image_mean", "image_std"))
    unfused = ((colors * (1 / 255) - mean) / deviation).flatten(1)
    torch.testing.assert_close(unfused, theirs, rtol=0, atol=1e-5)
    assert not torch.equal(unfused, theirs)
    swapped = {**ours, "image_scale": ours["image_scale"].flip(-1)}
    assert (normalized(swapped)["pixel_values"] - theirs).abs().max() > 1e-2


def test_each_medium_has_its_own_scale_and_media_may_be_of_any_number(model):
    encoder, _ = model
    parts = [both_of_picture(encoder, size) for size in SIZES[:3]]
    keys = ("pixel_values", "image_grid_thw", "image_scale")
    together = {key: torch.cat([ours[key] for ours, _ in parts]) for key in keys}
    assert torch.equal(normalized(together)["pixel_values"], torch.cat([theirs for _, theirs in parts]))
    together["image_scale"][1] *= 2
    rows = torch.cat([torch.full((len(theirs),), number) for number, (_, theirs) in enumerate(parts)])
    changed = (normalized(together)["pixel_values"] != torch.cat([theirs for _, theirs in parts])).any(-1)
    assert torch.equal(changed, rows == 1)


@torch.no_grad()
def test_towers_and_engines_get_what_the_processor_gives(model):
    encoder, policy = model
    backbone = policy.media.backbone
    prompts = omni.prompts(encoder, ["<image>angry", "<video>Which emotion?", "<video>angry<image>", "user"])
    media = prompts.media
    assert media.tensors["pixel_values"].dtype == torch.uint8
    # The noise media of `omni.prompts`, through the processors as they are.
    ready = {**backbone.model_inputs(media)}
    assert "image_scale" not in ready
    assert "video_scale" not in ready
    given = MediaInputs(tensors=ready, counts={})
    for kind, rows in backbone.media_features(media).items():
        assert torch.equal(backbone.media_features(given)[kind], rows), kind
    cut = {key: counts for key, counts in media.counts.items() if key in ready}
    before = engine_prompts(replace(prompts, media=MediaInputs(tensors=ready, counts=cut)), backbone)
    for old, new in zip(before, engine_prompts(prompts, backbone), strict=True):
        assert old.tensors.keys() == new.tensors.keys()
        for key in old.tensors:
            assert torch.equal(old.tensors[key], new.tensors[key]), key
            assert old.tensors[key].dtype == new.tensors[key].dtype != torch.uint8


@pytest.mark.parametrize("option", ["do_rescale", "do_normalize"])
def test_a_processor_that_does_something_else_gives_patches_that_are_ready(model, option, monkeypatch):
    encoder, _ = model
    for process in (encoder.processor.image_processor, encoder.processor.video_processor):
        monkeypatch.setattr(process, option, False)
    for ours, theirs in (both_of_picture(encoder, (64, 96)), both_of_clip(encoder, (64, 96))):
        [key] = [key for key in ours if key.startswith("pixel_values")]
        assert not any(name.endswith("scale") for name in ours)
        assert torch.equal(normalized(ours)[key], theirs)
