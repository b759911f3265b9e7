"""Prompts for an engine that knows no gaps within a medium: the same rows, in parts."""

from dataclasses import replace

import families
import pytest
import torch

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.models.families.media_keys import AUDIO_FEATURES, AUDIO_MASK, VIDEO_GRID, VIDEO_PIXELS
from lightning_mmrl.rollout.engine_inputs import EnginePrompt, MediaSpan, engine_prompts, medium_name, without_gaps
from lightning_mmrl.types.batches import MediaInputs

WINDOW = 50


def spans(*runs, offset=3, between=2):
    """A medium whose placeholders lie in runs, with a few tokens between them."""
    mask = []
    for run in runs:
        mask += [True] * run + [False] * between
    return MediaSpan(offset=offset, mask=torch.tensor(mask[:-between]))


def prompt(spans, **tensors):
    return EnginePrompt(token_ids=[0], positions=torch.zeros(3, 2), tensors=tensors, spans=spans)


def test_a_clip_becomes_one_for_each_run_and_its_patches_stay():
    grid, pixels = torch.tensor([[3, 4, 4], [1, 2, 2]]), torch.randn(52, 6)
    given = prompt({"video": [spans(4, 8), spans(1, offset=40)]}, **{VIDEO_GRID: grid, VIDEO_PIXELS: pixels})
    cut = without_gaps(given, WINDOW)
    assert cut.tensors[VIDEO_GRID].tolist() == [[1, 4, 4], [2, 4, 4], [1, 2, 2]]
    assert cut.tensors[VIDEO_PIXELS] is pixels
    assert [(span.offset, len(span.mask)) for span in cut.spans["video"]] == [(3, 4), (9, 8), (40, 1)]
    assert all(bool(span.mask.all()) for span in cut.spans["video"])


def test_a_sound_is_cut_between_two_windows_and_keeps_its_frames():
    frames = 4 * 2 * WINDOW + 7
    mask = torch.ones(1, frames, dtype=torch.int32)
    features = torch.randn(1, 5, frames)
    given = prompt({"audio": [spans(WINDOW, WINDOW, 2)]}, **{AUDIO_FEATURES: features, AUDIO_MASK: mask})
    cut = without_gaps(given, WINDOW)
    assert cut.tensors[AUDIO_MASK].sum(-1).tolist() == [4 * WINDOW, 4 * WINDOW, 7]
    assert cut.tensors[AUDIO_MASK].dtype == torch.int32
    kept = cut.tensors[AUDIO_FEATURES].permute(0, 2, 1)[cut.tensors[AUDIO_MASK].bool()]
    assert torch.equal(kept, features[0].T)
    assert [(span.offset, len(span.mask)) for span in cut.spans["audio"]] == [(3, 50), (55, 50), (107, 2)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            prompt({"video": [spans(4, 5)]}, **{VIDEO_GRID: torch.tensor([[3, 2, 2]])}),
            r"a clip of 3 frame pairs lies in the prompt in parts of \[4, 5\] tokens",
        ),
        (
            prompt(
                {"audio": [spans(49, 3)]},
                **{AUDIO_FEATURES: torch.zeros(1, 2, 208), AUDIO_MASK: torch.ones(1, 208)},
            ),
            r"a sound lies in the prompt in parts of \[49, 3\] tokens; its tower takes 50",
        ),
    ],
)
def test_what_would_change_a_tower_is_refused(given, message):
    with pytest.raises(RolloutError, match=message):
        without_gaps(given, WINDOW)


@pytest.mark.parametrize("name", ["qwen2_5_omni", "qwen3_vl", "qwen2_5_vl", "qwen2_vl"])
def test_the_towers_make_the_same_rows_of_the_parts(name, tmp_path):
    checkpoint = families.build(name, tmp_path / "model")
    encoder, policy = families.load(name, checkpoint, torch.float64)
    batch = families.prompts(name, encoder)
    backbone = policy.media.backbone
    compared = 0
    for given in engine_prompts(batch, backbone):
        if not given.spans:
            continue
        cut = without_gaps(given, WINDOW)
        whole, parts = (
            backbone.media_features(MediaInputs(tensors=dict(each.tensors), counts={})) for each in (given, cut)
        )
        assert whole.keys() == parts.keys()
        for kind in whole:
            # Products of other sizes are summed in another order.
            torch.testing.assert_close(parts[kind], whole[kind], rtol=0, atol=1e-12)
            compared += 1
    assert compared > 0


def test_media_of_known_content_are_named_without_being_read(tmp_path):
    """A tensor on the device `meta` cannot be read. Equal names mean equal tensors, so names must tell media apart."""
    encoder, policy = families.load("qwen2_5_vl", families.build("qwen2_5_vl", tmp_path / "model"), torch.float32)
    batch = families.prompts("qwen2_5_vl", encoder)
    keys = tuple(f"content {row}" for row in range(len(batch.samples)))
    known = engine_prompts(replace(batch, media=replace(batch.media, keys=keys)), policy.media.backbone)
    assert [each.media_key for each in known] == list(keys)
    assert {each.media_key for each in engine_prompts(batch, policy.media.backbone)} == {""}

    def name(key="content", kind="video", number=0, rows=4):
        return medium_name(key, kind, number, {"pixels": torch.empty(rows, 6, device="meta")})

    assert name() == name()
    assert len({name(), name("other"), name(kind="image"), name(number=1), name(rows=8)}) == 5


def test_a_sound_that_is_cut_within_a_window_sounds_otherwise(tmp_path):
    """The negative control: it is the windows that make the parts equal."""
    _, policy = families.load("qwen2_5_omni", families.build("qwen2_5_omni", tmp_path / "model"), torch.float64)
    backbone = policy.media.backbone
    frames = 4 * WINDOW
    tensors = {AUDIO_FEATURES: torch.randn(1, 128, frames).double(), AUDIO_MASK: torch.ones(1, frames).int()}
    given = prompt({"audio": [spans(WINDOW // 2, WINDOW // 2)]}, **tensors)
    cut = without_gaps(given, WINDOW // 2)
    whole, parts = (
        backbone.media_features(MediaInputs(tensors=dict(each.tensors), counts={}))["audio"] for each in (given, cut)
    )
    assert (whole - parts).abs().max() > 1e-3
