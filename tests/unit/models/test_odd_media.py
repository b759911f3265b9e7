"""Media at the edge of what a model can take: thin pictures, short sounds, long prompts."""

from types import SimpleNamespace

import families
import numpy as np
import omni
import pytest
import torch
from PIL import Image

from lightning_mmrl.errors import DataError, MediaError
from lightning_mmrl.models.families.places import next_medium
from lightning_mmrl.models.families.qwen2_vl import Qwen2VL
from lightning_mmrl.models.families.qwen_vision import normalized
from lightning_mmrl.models.positions import MediaLayout, Span, prompt_positions
from lightning_mmrl.types.batches import MediaInputs
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, DecodedVideo
from lightning_mmrl.types.records import Message

SEEING = ("qwen2_5_omni", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
THIN = [(3, 40), (40, 3), (1, 40), (40, 1), (1, 1), (3, 3), (3, 100), (4, 100), (2, 100), (3, 600), (4, 4)]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {
        name: families.FAMILIES[name].encoder.from_checkpoint(families.build(name, folder / name)) for name in SEEING
    }


@pytest.fixture(params=SEEING)
def encoder(request, encoders):
    return encoders[request.param]


def noise(height, width, *more):
    return np.random.default_rng(0).integers(0, 255, (*more, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", THIN)
def test_a_thin_picture_is_read_as_pillow_would_give_it(encoder, size):
    """The case thin_image."""
    pixels = noise(*size)
    ours = encoder.encode_image(DecodedImage(pixels=pixels))
    theirs = encoder.processor.image_processor(images=[Image.fromarray(pixels)], return_tensors="pt")
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    assert torch.equal(normalized(ours)["pixel_values"], theirs["pixel_values"])
    assert encoder.blank_image(ours)["pixel_values"].shape == ours["pixel_values"].shape


@pytest.mark.parametrize("size", THIN)
def test_a_thin_clip_is_read_as_frames_with_their_channels_first(encoder, size):
    """Of tensors [T, 3, H, W] the processor cannot be mistaken about the axis that it is told."""
    frames = noise(*size, 4)
    clip = encoder.encode_video(DecodedVideo(frames=frames, timestamps_s=(0.1, 0.2, 0.3, 0.4), duration_s=0.5))
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    how = {"input_data_format": "channels_first", "do_sample_frames": False, "return_tensors": "pt"}
    theirs = encoder.processor.video_processor(videos=[tensor], **how)
    assert torch.equal(clip["video_grid_thw"], theirs["video_grid_thw"])
    assert torch.equal(normalized(clip)["pixel_values_videos"], theirs["pixel_values_videos"])
    assert encoder.blank_video(clip)["pixel_values_videos"].shape == clip["pixel_values_videos"].shape


@pytest.mark.parametrize("ms", [0, 1, 10, 19, 20])
def test_a_sound_that_makes_no_token_is_refused_with_its_length(encoders, ms):
    sound = DecodedAudio(waveform=np.zeros(16 * ms, dtype=np.float32), sample_rate_hz=16_000)
    with pytest.raises(MediaError, match=f"^sound of {ms} ms is too short: the model makes no token of it; use a"):
        encoders["qwen2_5_omni"].encode_audio(sound)


@pytest.mark.parametrize("num_samples", [321, 480, 640])
@pytest.mark.parametrize("content", ["<audio>Which emotion?", "<audio><audio>"])
def test_the_shortest_sounds_that_make_a_token_make_a_prompt(encoders, num_samples, content):
    encoder = encoders["qwen2_5_omni"]
    waveform = np.ones(num_samples, dtype=np.float32)
    sound = encoder.encode_audio(DecodedAudio(waveform=waveform, sample_rate_hz=16_000))
    media = [sound] * content.count("<audio>")
    prompt = encoder.encode_prompt((Message(role="user", content=content),), "", media)
    assert int((prompt["input_ids"] == encoder.config.audio_token_id).sum()) == len(media)
    assert encoder.silent_audio(sound)["input_features"].shape == sound["input_features"].shape


@pytest.mark.parametrize("kinds", [(), (None,), (None, None)])
def test_a_medium_without_a_token_has_no_place_in_a_prompt(kinds):
    span = Span(kinds=kinds, offsets=torch.zeros(3, len(kinds), dtype=torch.long), step=len(kinds))
    with pytest.raises(MediaError, match="a medium makes no token"):
        prompt_positions([None, "audio", None], [span])
    with pytest.raises(MediaError, match="a medium makes no token"):
        prompt_positions([None, None], [MediaLayout(rule="transformers").sound(0)])


def test_a_place_without_a_medium_and_a_tower_that_returns_too_little_end_in_words(encoders):
    with pytest.raises(MediaError, match="more places for <image> media than media"):
        next_medium({"image": iter(())}, "image")

    class Tower:
        def get_image_features(self, *_, **__):
            return SimpleNamespace(pooler_output=[torch.zeros(1, 4)])

    tensors = {"pixel_values": torch.zeros(8, 4), "image_grid_thw": torch.ones(2, 3, dtype=torch.long)}
    with pytest.raises(MediaError, match="feature rows of 1 media out of 2"):
        Qwen2VL(Tower()).media_features(MediaInputs(tensors=tensors, counts={}))


def test_a_prompt_takes_as_many_positions_as_the_model_has_and_no_more(encoder):
    def prompt(num_words):
        return encoder.encode_prompt((Message(role="user", content="angry " * num_words),), "", [])

    limit = encoder.max_positions
    assert limit == 4096
    per_word = len(prompt(20)["input_ids"]) - len(prompt(19)["input_ids"])
    room = 1 + (limit - len(prompt(1)["input_ids"])) // per_word
    assert int(prompt(room)["next_position"]) <= limit
    with pytest.raises(DataError, match=r"a prompt of \d+ tokens takes \d+ positions, and the model has 4096; shorten"):
        prompt(room + 1)


def test_positions_are_counted_and_not_tokens(encoders):
    """A clip's tokens share positions: this one has more of them than the model has positions."""
    encoder = encoders["qwen2_5_omni"]
    clip = encoder.encode_video(omni.noise_video(0))
    long = {**clip, "video_grid_thw": torch.tensor([[400, 8, 8]]), "video_second_per_grid": torch.tensor([0.04])}
    prompt = encoder.encode_prompt((Message(role="user", content="<video>"),), "", [long])
    assert len(prompt["input_ids"]) > 4096 > int(prompt["next_position"])


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "rope_theta": 1e4}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "rope_theta": 1e4}, 4096),
        ({"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 1024, "rope_theta": 1e4}, 4096),
    ],
)
def test_yarn_stretches_the_positions(tmp_path, rope, limit):
    name = "qwen2"
    encoder = families.FAMILIES[name].encoder.from_checkpoint(families.build(name, tmp_path / name))
    encoder.config.rope_parameters = rope
    assert encoder.max_positions == limit
