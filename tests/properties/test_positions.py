"""For random mixes of media, positions equal transformers' under its rule, and under ours where the two agree."""

from dataclasses import replace

import families
import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

from lightning_mmrl.errors import DataError
from lightning_mmrl.models.positions import patch_clock
from lightning_mmrl.types.records import Message

WORDS = ("angry", "Which emotion?", "user", "look", "4")
FRAME_RATES = (0.25, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 24, 25, 29.97, 30)
merged = st.integers(1, 9)


@st.composite
def a_clip(draw):
    rate = draw(st.one_of(st.sampled_from(FRAME_RATES), st.floats(0.2, 30)))
    grid = [draw(st.integers(1, 12)), 2 * draw(merged), 2 * draw(merged)]
    return {
        "video_grid_thw": torch.tensor([grid]),
        "video_second_per_grid": torch.tensor([2 / rate], dtype=torch.float32),
        "video_timestamps": torch.arange(grid[0]) * 2 / rate,
    }


pictures = st.builds(
    lambda height, width: {"image_grid_thw": torch.tensor([[1, 2 * height, 2 * width]])}, merged, merged
)
sounds = st.builds(
    lambda frames: {"feature_attention_mask": torch.ones(1, frames, dtype=torch.int32)}, st.integers(3, 700)
)
media_of = {"image": pictures, "video": a_clip(), "audio": sounds}


@st.composite
def a_prompt(draw, kinds):
    """Tags and words in any order, and the media of the tags."""
    content, media = "", []
    for part in draw(st.lists(st.sampled_from([*sorted(kinds), *WORDS]), max_size=8)):
        if part in kinds:
            media.append(draw(media_of[part]))
        content += f"<{part}>" if part in kinds else part
    return content, media


@pytest.fixture(scope="module", params=families.each())
def family(request, tmp_path_factory):
    folder = families.build(request.param, tmp_path_factory.mktemp(request.param))
    each = families.FAMILIES[request.param]
    encoders = {
        rule: each.encoder.from_checkpoint(folder, position_rule=rule) for rule in ("previous_maximum", "transformers")
    }
    model = each.backbone.from_checkpoint(folder).model
    return request.param, encoders, lambda ids, media: each.stock_positions(model, ids, families.stacked(media))


def encode(encoder, content, media):
    try:
        return encoder.encode_prompt((Message(role="user", content=content),), "<think>", media)
    except DataError as error:
        if "positions, and the model has" not in str(error):
            raise
        reject()  # a slow clip may reach beyond the tiny model's positions


@given(data=st.data())
def test_under_its_rule_positions_are_those_of_transformers(family, data):
    _, encoders, stock = family
    encoder = encoders["transformers"]
    content, media = data.draw(a_prompt(encoder.media_kinds))
    out = encode(encoder, content, media)
    assert torch.equal(out["position_ids"], stock(out["input_ids"], media))
    # Prompts end with text, and a completion goes on from it.
    assert out["next_position"].item() == out["position_ids"][0, -1].item() + 1


def outlasts(encoder, clip):
    """Does the clip come further in time than its frames are wide?"""
    [grid], [seconds] = clip["video_grid_thw"].tolist(), clip["video_second_per_grid"]
    return int(encoder.layout.clock(grid[0], seconds)[-1]) >= max(grid[1:]) // 2


@given(data=st.data())
def test_the_rules_differ_where_a_clip_outlasts_its_frames_and_nowhere_else(family, data):
    name, encoders, _ = family
    ours, theirs = encoders["previous_maximum"], encoders["transformers"]
    content, media = data.draw(a_prompt(ours.media_kinds))
    one, other = encode(ours, content, media), encode(theirs, content, media)
    assert torch.equal(one["input_ids"], other["input_ids"])
    clips = [item for item in media if "video_grid_thw" in item]
    if name in ("qwen2_vl", "qwen2_5_vl") and any(outlasts(ours, clip) for clip in clips):
        assert one["next_position"] > other["next_position"]
    else:
        assert torch.equal(one["position_ids"], other["position_ids"])
        assert torch.equal(one["next_position"], other["next_position"])


@given(data=st.data())
def test_text_behind_a_medium_is_ahead_of_everything_before_it(family, data):
    _, encoders, _ = family
    content, media = data.draw(a_prompt(encoders["previous_maximum"].media_kinds))
    out = encode(encoders["previous_maximum"], content, media)
    highest = out["position_ids"].amax(0).cummax(0).values
    placeholders = list(families.placeholders(encoders["previous_maximum"]))
    for index, token in enumerate(out["input_ids"].tolist()[1:], 1):
        if token not in placeholders:
            assert out["position_ids"][:, index].tolist() == [highest[index - 1].item() + 1] * 3
    assert out["next_position"].item() == highest[-1].item() + 1


def test_a_rule_with_another_clock_is_noticed(family):
    name, encoders, stock = family
    encoder = encoders["transformers"]
    if name not in ("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni"):
        assert encoder.layout.clock is patch_clock, "the other families' positions have no clock"
        return
    clip = {"video_grid_thw": torch.tensor([[4, 4, 4]]), "video_second_per_grid": torch.tensor([1.7])}
    vars(encoder)["layout"] = replace(encoder.layout, clock=lambda count, seconds: 3 * torch.arange(count) + 1)
    out = encode(encoder, "<video>", [clip])
    del vars(encoder)["layout"]
    assert not torch.equal(out["position_ids"], stock(out["input_ids"], [clip]))
