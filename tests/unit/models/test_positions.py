"""The builder of position ids by hand: what each medium does to them, and where the two rules part."""

from functools import partial

import pytest
import torch

from lightning_mmrl.errors import MediaError
from lightning_mmrl.models.positions import MediaLayout, interval_clock, patch_clock, prompt_positions, time_clock

SECOND = torch.tensor(1.0)
QWEN25 = partial(interval_clock, per_second=4)


def build(spans, before=0, after=0, between=0):
    """The positions of a prompt with text around its media."""
    text = [None] * between
    kinds = [kind for index, span in enumerate(spans) for kind in (*(text if index else ()), *span.kinds)]
    return prompt_positions([*[None] * before, *kinds, *[None] * after], spans)


def test_text_alone_counts_its_tokens_on_all_axes():
    positions, following = build([], before=3)
    assert positions.tolist() == [[0, 1, 2]] * 3
    assert following == 3


def test_no_token_at_all_is_a_prompt_too():
    positions, following = build([])
    assert positions.shape == (3, 0)
    assert following == 0


@pytest.mark.parametrize("rule", ["previous_maximum", "transformers"])
def test_a_picture_spreads_over_height_and_width_and_text_goes_on_behind_the_longer_side(rule):
    picture = MediaLayout(rule=rule).picture((1, 4, 6))
    positions, following = build([picture], before=2, after=1)
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]
    assert following == 6


def test_a_clip_follows_its_clock():
    layout = MediaLayout(rule="previous_maximum", clock=QWEN25)
    positions, following = build([layout.clip((2, 2, 2), torch.tensor(0.75))], before=1, after=1)
    # 4 positions a second and 0.75 s: the second patch is 3 later.
    assert positions.tolist() == [[0, 1, 4, 5], [0, 1, 1, 5], [0, 1, 1, 5]]
    assert following == 6


def test_sound_moves_like_text():
    positions, following = build([MediaLayout(rule="previous_maximum").sound(3)], before=1, after=1)
    assert positions.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert following == 5


@pytest.mark.parametrize(("rule", "text", "following"), [("previous_maximum", 67, 68), ("transformers", 14, 15)])
def test_behind_a_long_clip_of_small_frames_the_rules_part(rule, text, following):
    # 16 temporal patches of 16x16 patches, 1 s apart at 4 positions a second, after 6 tokens of text. Of the 16x16
    # patches, 2x2 make a row, so height and width reach 6 + 7 = 13; time reaches 6 + 15 * 4 = 66.
    layout = MediaLayout(rule=rule, clock=QWEN25)
    positions, after = build([layout.clip((16, 16, 16), SECOND)], before=6, after=1)
    clip = positions[:, 6:-1]
    assert clip.amin(-1).tolist() == [6, 6, 6]
    assert clip.amax(-1).tolist() == [66, 13, 13]
    assert positions[:, -1].tolist() == [text] * 3
    assert after == following


def test_the_measured_prompt_of_the_hazard():
    # The same clip with 20 tokens of text behind it: transformers ends at 33, and 34 is next, below the clip's 66.
    ends = {}
    for rule in ("previous_maximum", "transformers"):
        layout = MediaLayout(rule=rule, clock=QWEN25)
        positions, following = build([layout.clip((16, 16, 16), SECOND)], before=6, after=20)
        ends[rule] = (positions[0, -1].item(), following, positions.max().item())
    assert ends == {"previous_maximum": (86, 87, 86), "transformers": (33, 34, 66)}


def test_where_no_clip_outlasts_its_frames_the_rules_agree():
    for seconds in (0.1, 0.5, 1.0):
        ours, theirs = (
            build([MediaLayout(rule=rule, clock=QWEN25).clip((2, 16, 16), torch.tensor(seconds))], before=3, after=4)
            for rule in ("previous_maximum", "transformers")
        )
        assert torch.equal(ours[0], theirs[0])
        assert ours[1] == theirs[1]


def test_the_clocks_round_as_their_models_do():
    assert patch_clock(3, torch.tensor(9.0)).tolist() == [0, 1, 2]
    assert interval_clock(4, torch.tensor(0.4), per_second=2).tolist() == [0, 0, 1, 2]
    assert time_clock(4, torch.tensor(0.4), per_second=25).tolist() == [0, 10, 20, 30]
    # 0.9 s is 0.89999998 in float32: rounding the time of patch 20 gives 18 s, rounding the interval first does too,
    # and in float64 the same number falls short.
    assert time_clock(21, torch.tensor(0.9), per_second=25)[20].item() == 450
    assert int(20 * torch.tensor(0.9).double() * 25) == 449


def test_a_clip_whose_patches_stand_apart_is_a_row_of_pictures():
    frames = MediaLayout(rule="previous_maximum").frames((2, 2, 4))
    positions, following = build(frames, before=1, between=1, after=1)
    assert positions.tolist() == [[0, 1, 1, 3, 4, 4, 6], [0, 1, 1, 3, 4, 4, 6], [0, 1, 2, 3, 4, 5, 6]]
    assert following == 7


def interleaved(rule, num_patches, num_tokens, seconds=1.0, chunk=4):
    layout = MediaLayout(rule=rule, clock=partial(time_clock, per_second=2), stock_counts_time=True, chunk=chunk)
    return layout.sounding_clip((num_patches, 2, 2), torch.tensor(seconds), num_tokens)


def test_clip_and_sound_take_turns_and_start_at_the_same_moment():
    span = interleaved("previous_maximum", 3, 6)
    v, a = "video", "audio"
    assert span.kinds == (None, None, v, v, a, a, a, a, v, a, a, None, None)
    # The opening markers share 0, clip and sound start at 1, the closing markers share the next one.
    assert span.offsets[0].tolist() == [0, 0, 1, 3, 1, 2, 3, 4, 5, 5, 6, 7, 7]
    assert span.offsets[1].tolist() == [0, 0, 1, 1, 1, 2, 3, 4, 1, 5, 6, 7, 7]
    assert span.step == 8
    assert span.num_markers == 2


def test_behind_a_sound_that_ends_first_the_rules_part():
    # Last turn: one patch at 9, no sound; before it the sound reached 3. Same last turn, so the rules agree.
    ours, theirs = interleaved("previous_maximum", 5, 3), interleaved("transformers", 5, 3)
    assert torch.equal(ours.offsets, theirs.offsets)
    # Both have two turns, and the sound's last one ends at 6, before the clip's patch at 7: transformers overlaps.
    ours, theirs = interleaved("previous_maximum", 4, 6), interleaved("transformers", 4, 6)
    assert ours.offsets[0].max().item() == 8
    assert theirs.offsets[0, -2:].tolist() == [7, 7]
    assert (ours.step, theirs.step) == (9, 8)


def test_a_clip_that_jumps_over_a_chunk_is_cut_behind_the_token_that_jumped():
    # Patches at 0, 10, 20 in chunks of 4: each cut moves the next boundary by one chunk only.
    span = interleaved("previous_maximum", 3, 2, seconds=5.0)
    assert span.kinds[2:-2] == ("video", "audio", "audio", "video", "video")


def test_placeholders_that_are_not_the_medias_are_refused():
    picture = MediaLayout(rule="previous_maximum").picture((1, 4, 4))
    sound = MediaLayout(rule="previous_maximum").sound(2)
    for kinds, spans in (
        ([None, *["image"] * 3], [picture]),
        ([None, *["video"] * 4], [picture]),
        ([None], [picture]),
        (["audio", "audio", *["image"] * 4], [picture, sound]),
    ):
        with pytest.raises(MediaError, match="do not match its media"):
            prompt_positions(kinds, spans)
    with pytest.raises(MediaError, match="a prompt has placeholders after its last medium, which ends at token 4"):
        prompt_positions([*["image"] * 4, None, "image"], [picture])
    both, body = interleaved("previous_maximum", 1, 1), ("video", "audio")
    for kinds in ((None, *body, None, None), (None, None, *body, None, None, *body, None, None)):
        # A marker is missing, or one pair of markers stands for two.
        with pytest.raises(MediaError, match="do not match its media"):
            prompt_positions(kinds, [both, both])
