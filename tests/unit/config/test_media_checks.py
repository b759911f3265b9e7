"""Keys of frames and sizes that contradict each other are refused, and change the digests of stages."""

import pytest

from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.specs import base_evaluation, stage_specs
from lightning_mmrl.errors import ConfigError


def media(*keys):
    return [f"++data.media.{key}" for key in keys]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["min_frame_pixels=9", "max_frame_pixels=8"], "min_frame_pixels is 9, above data.media.max_frame_pixels 8"),
        (["min_image_pixels=9", "max_image_pixels=8"], "lower min_image_pixels or raise max_image_pixels"),
        (["min_frame_pixels=9", "total_pixels=8"], "min_frame_pixels is 9, above data.media.total_pixels 8"),
        (["fps=2", "min_frames=9", "max_frames=8"], "min_frames is 9, above data.media.max_frames 8"),
        (["fps=2", "min_frames=7", "max_frames=7"], "are 7, and the number of frames is even; set both to 8"),
        (["min_frames=4"], "min_frames is 4, and without data.media.fps clips have num_frames frames"),
        (["max_frames=4"], "set data.media.fps, or data.media.max_frames=null"),
        (["fps=0"], "fps is 0.0; it must be above 0 and finite, or null"),
        (["max_frames=1", "fps=1"], "max_frames is 1; it must be at least 2, or null"),
        (["total_pixels=-1"], "total_pixels is -1; it must be at least 1, or null"),
        (["frame_rule=linspace"], "frame_rule is 'linspace', which is no choice; known are middles, qwen_vl_utils"),
        (["max_frame_pixel=9"], "max_frame_pixel: unknown key.*did you mean .*max_frame_pixels"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        compose(media(*keys))


@pytest.mark.parametrize(
    "keys",
    [
        ["fps=2", "min_frames=8", "max_frames=8"],
        ["fps=0.5", "min_frames=3", "max_frames=4"],
        ["min_frame_pixels=784", "max_frame_pixels=784", "total_pixels=784"],
        ["max_pixels=100", "max_frame_pixels=784"],
    ],
)
def test_keys_that_agree_pass(keys):
    assert compose(media(*keys)).data.media.chosen


@pytest.mark.parametrize(
    "key",
    [
        "frame_rule=qwen_vl_utils",
        "fps=2",
        "min_frame_pixels=784",
        "max_frame_pixels=100352",
        "total_pixels=1000000",
        "min_image_pixels=784",
        "max_image_pixels=100352",
    ],
)
def test_a_key_that_is_set_changes_every_digest(key):
    before, after = (
        [(spec.digest, spec.content) for spec in stage_specs(config)] + [(base_evaluation(config), {})]
        for config in (compose(each) for each in ((), media(key)))
    )
    name, _, value = key.partition("=")
    for (digest, _), (other, content) in zip(before, after, strict=True):
        assert digest != other
        assert not content or str(content[f"data.media.{name}"]) in (value, f"{value}.0")
    assert all(f"data.media.{name}" not in content for _, content in before)


def test_keys_at_their_default_are_in_no_digest():
    """The digests of runs that were begun before there were such keys."""
    before = [spec.digest for spec in stage_specs(compose([]))]
    keys = media("frame_rule=middles", "fps=null", "total_pixels=null", "max_image_pixels=null")
    assert [spec.digest for spec in stage_specs(compose(keys))] == before
    assert all(
        key == "data.media.num_frames"
        for spec in stage_specs(compose([]))
        for key in spec.content
        if key.startswith("data.media.")
    )
