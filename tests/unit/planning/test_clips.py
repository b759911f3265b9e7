"""Tokens of a clip as the plan counts them are the rows that an encoder makes of it."""

import families
import numpy as np
import pytest
from transformers import AutoProcessor

from lightning_mmrl.data.media.sizing import FrameStack
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.planning.clips import Clip, count, lengths_with_clip, own_sizes
from lightning_mmrl.planning.memory import Lengths
from lightning_mmrl.planning.shapes import read_shape
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import DecodedVideo

FAMILIES = ("qwen2_5_omni", "qwen2_5_vl", "qwen2_vl", "qwen3_vl")
KEYS = (
    {},
    {"min_frame_pixels": 1024, "max_frame_pixels": 30_000},
    {"min_frame_pixels": 1024, "total_pixels": 60_000},
    {"fps": 1.0, "min_frame_pixels": 1024, "max_frame_pixels": 20_000, "max_frames": 6},
)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    """A checkpoint whose processor has the sizes of a released one, and its encoder."""
    folder = families.build(request.param, tmp_path_factory.mktemp(request.param))
    processor = AutoProcessor.from_pretrained(folder)
    for process in (processor.image_processor, processor.video_processor):
        process.size = {"shortest_edge": 4096, "longest_edge": 400_000}
    processor.video_processor.cap_pixels_per_frame = None
    processor.save_pretrained(folder)
    return folder, families.FAMILIES[request.param].encoder.from_checkpoint(folder)


@pytest.mark.parametrize("keys", KEYS, ids=str)
def test_the_tokens_are_the_rows_of_the_encoder(model, keys):
    folder, encoder = model
    settings, clip = MediaSettings(num_frames=4, **keys), Clip(width=320, height=180, seconds=8.0)
    tower = read_shape(str(folder)).stacks["vision"]
    own = own_sizes(str(folder), tower)
    assert (own.factor, own.image, own.frame) == (
        encoder.own_sizes.factor,
        encoder.own_sizes.image,
        encoder.own_sizes.frame,
    )
    found = count(clip, settings, own)
    assert found.frames == (6 if "fps" in keys else 4)
    stack = FrameStack(folder, found.frames, settings, encoder.own_sizes)
    stack.put(range(found.frames), np.zeros((clip.height, clip.width, 3), dtype=np.uint8))
    times = tuple(float(index) for index in range(found.frames))
    video = DecodedVideo(frames=stack.frames, timestamps_s=times, duration_s=8.0, resized_from=stack.resized_from)
    encoded = encoder.encode_video(video)
    pairs, rows, columns = encoded["video_grid_thw"][0].tolist()
    assert found.tokens == pairs * rows * columns // 4
    if stack.resized_from is not None:
        assert stack.frames.shape[1:3] == (found.height, found.width)
        assert [rows * tower.square // 2, columns * tower.square // 2] == [found.height, found.width]


def test_only_a_clip_or_a_key_changes_the_lengths(model):
    folder, _ = model
    shape = read_shape(str(folder))
    assert lengths_with_clip(Lengths(), None, MediaSettings(), shape, str(folder)) == (Lengths(), None)
    clip = Clip(width=320, height=180, seconds=8.0)
    lengths, line = lengths_with_clip(Lengths(), clip, MediaSettings(num_frames=4), shape, str(folder))
    tokens = count(clip, MediaSettings(num_frames=4), own_sizes(str(folder), shape.stacks["vision"])).tokens
    assert (lengths.clip, lengths.media("vision"), lengths.prompt) == (tokens, tokens, 2048 - 1536 + tokens)
    assert line is not None
    assert line.startswith("a clip of 320 x 180, 8 s (--clip) is 4 frames of ")
    assert "not known" not in line
    given, _ = lengths_with_clip(Lengths(prompt=10), clip, MediaSettings(), shape, str(folder))
    assert (given.prompt, given.media("vision")) == (10, 10)


def test_bounds_that_are_not_at_hand_are_said_to_be_so(model):
    shape = read_shape(str(model[0]))
    _, line = lengths_with_clip(Lengths(), None, MediaSettings(fps=2.0), shape, "me/not-here")
    assert "(bounds of the processor are not known)" in line


@pytest.mark.parametrize("text", ["", "640", "640x360", "0x10x1", "640x360x0", "axbxc", "640x360x1e3"])
def test_another_form_is_refused(text):
    with pytest.raises(ConfigError, match="it must be WIDTHxHEIGHTxSECONDS, such as 1280x720x10"):
        Clip.parse(text)


def test_a_clip_that_the_keys_refuse_is_named(model):
    shape, refused = read_shape(str(model[0])), Clip(width=5000, height=10)
    with pytest.raises(ConfigError, match=r"a clip of 5000x10x10 cannot be shown by data.media: .* ratio above 200"):
        lengths_with_clip(Lengths(), refused, MediaSettings(), shape, str(model[0]))
