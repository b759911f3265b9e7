"""The vision-language families, and what they share with the others."""

import families
import numpy as np
import omni
import pytest
import torch
from transformers import Qwen2_5OmniConfig
from transformers.video_utils import VideoMetadata

from lightning_mmrl.errors import DataError, MediaError, StageError
from lightning_mmrl.models.families.qwen_vision import normalized
from lightning_mmrl.types.batches import ScoringBatch
from lightning_mmrl.types.records import Message

NAMES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl")


@pytest.fixture(scope="module", params=NAMES)
def model(request, tmp_path_factory):
    folder = families.build(request.param, tmp_path_factory.mktemp(request.param))
    return request.param, *families.load(request.param, folder)


def turn(content):
    return (Message(role="user", content=content),)


def test_the_encoder_equals_the_processor(model):
    name, encoder, _ = model
    image, video = omni.noise_image(0), omni.noise_video(0)
    media = [encoder.encode_video(video), encoder.encode_image(image)]
    ours = normalized(encoder.encode_prompt(turn("<video>look<image>Which emotion?"), "<think>", media))
    parts = [{"type": "video"}, {"type": "text", "text": "look"}, {"type": "image"}]
    chat = [{"role": "user", "content": [*parts, {"type": "text", "text": "Which emotion?"}]}]
    text = encoder.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) + "<think>"
    metadata = VideoMetadata(
        total_num_frames=4, fps=video.sampled_fps, duration=video.duration_s, frames_indices=np.arange(4) + 0.5
    )
    theirs = encoder.processor(
        text=text, images=[image.pixels], videos=[video.frames], video_metadata=[metadata], return_tensors="pt"
    )
    for key in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        assert torch.equal(ours[key], theirs[key]), key
    assert torch.equal(ours["input_ids"], theirs["input_ids"][0])
    if name == "qwen2_5_vl":
        seconds = encoder.encode_video(video)["video_second_per_grid"]
        torch.testing.assert_close(seconds, torch.as_tensor(theirs["second_per_grid_ts"]).float())


def test_only_one_family_follows_the_clock_of_the_clip_in_its_positions(model):
    name, encoder, _ = model
    out = encoder.encode_prompt(turn("<video>"), "", [encoder.encode_video(omni.noise_video(0, duration_s=6.0))])
    slots = out["input_ids"] == encoder.config.video_token_id
    times = out["position_ids"][0, slots].unique()
    # Two temporal patches of two frames, 3 s apart: two positions per second, or one per patch, or a picture of 2x2
    # rows and the tokens between: two markers and a time.
    between = len(encoder.tokenizer("<4.5 seconds>").input_ids) + 2
    assert (times[1] - times[0]).item() == {"qwen2_5_vl": 6, "qwen2_vl": 1, "qwen3_vl": 2 + between}[name]
    assert out["next_position"].item() == out["position_ids"].max().item() + 1


def test_pictures_have_no_clock(model):
    _, encoder, _ = model
    media = [encoder.encode_image(omni.noise_image(0)), encoder.encode_video(omni.noise_video(0))]
    out = encoder.encode_prompt(turn("<image><video>"), "", media)
    assert out["position_ids"][0, out["input_ids"] == encoder.config.image_token_id].unique().numel() == 1
    assert set(out) == {"input_ids", "position_ids", "next_position"} | set(media[0]) | set(media[1]) - {
        "video_second_per_grid",
        "video_timestamps",
    }


def test_grey_keeps_every_shape_and_changes_the_content(model):
    _, encoder, _ = model
    video, image = encoder.encode_video(omni.noise_video(3)), encoder.encode_image(omni.noise_image(3, 200, 40))
    for medium, blank in ((video, encoder.blank_video(video)), (image, encoder.blank_image(image))):
        assert {k: v.shape for k, v in blank.items()} == {k: v.shape for k, v in medium.items()}
        [pixels] = [key for key in medium if key.startswith("pixel_values")]
        assert blank[pixels].eq(128).all()
        assert not torch.equal(blank[pixels], medium[pixels])


def test_sound_is_refused_with_the_same_sentence_for_every_sample(model):
    _, encoder, _ = model
    assert encoder.media_kinds == {"image", "video"}
    sentence = "reads text, image, video, not audio; choose a model that reads audio or leave the <audio> media out"
    with pytest.raises(MediaError, match=sentence):
        encoder.encode_audio(omni.noise_audio(0))
    with pytest.raises(MediaError, match=sentence):
        encoder.silent_audio({})


def test_media_tokens_written_in_the_text_are_refused(model):
    _, encoder, _ = model
    with pytest.raises(DataError, match=r"'angry <\|image_pad\|>' holds the control token '<\|image_pad\|>', which"):
        encoder.encode_prompt(turn("angry <|image_pad|>"), "", [])
    with pytest.raises(MediaError, match=r"a prompt has 1 <\|image_pad\|> tokens for 0 media; mark each medium"):
        encoder.encode_prompt(turn("angry <image>"), "", [])


def test_banned_ids_cover_media_and_unused_head_rows(model):
    _, encoder, policy = model
    banned = set(encoder.banned_token_ids())
    tokenizer = encoder.processor.tokenizer
    media = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    assert {tokenizer.convert_tokens_to_ids(token) for token in media} <= banned
    assert set(range(len(tokenizer), encoder.config.text_config.vocab_size)) <= banned
    assert not set(encoder.eos_token_ids) & banned
    assert policy.banned.sum().item() == len(banned)


def test_features_without_placeholders_are_refused(model):
    _, encoder, policy = model
    batch = omni.prompts(encoder, ["<image>angry"])
    batch.input_ids[batch.input_ids == encoder.config.image_token_id] = encoder.pad_token_id
    with pytest.raises(MediaError, match="sample p0: 0 image placeholders but 6 image feature rows"):
        policy.media.features(batch)


def test_frozen_towers_run_once_for_pictures_and_clips(model):
    name, encoder, policy = model
    runs = []
    handle = policy.model.model.visual.register_forward_hook(lambda *_: runs.append(1))
    batch = families.prompts(name, encoder)
    tokens, mask = omni.ragged_completions(encoder, len(batch.samples))
    try:
        with torch.no_grad():
            scoring = ScoringBatch(prompts=batch, completion_ids=tokens, completion_mask=mask, group_size=1)
            expected = policy(scoring).logprobs
            policy.freeze(["vision"])
            ready = policy.media.encode(batch)
            scoring = ScoringBatch(prompts=ready, completion_ids=tokens, completion_mask=mask, group_size=1)
            found = [policy(scoring).logprobs for _ in range(2)]
        assert len(runs) == 2
        torch.testing.assert_close(found[1], expected, rtol=0, atol=1e-9)
    finally:
        handle.remove()
        policy.model.requires_grad_(True)


def test_the_fingerprint_follows_the_processor(model, tmp_path):
    name, encoder, _ = model
    family = families.FAMILIES[name]
    other = family.encoder.from_checkpoint(
        family.build(tmp_path, text=omni.TEXT, **{**family.sizes, "frame_size": 84}),
    )
    assert other.fingerprint != encoder.fingerprint
    grid = other.encode_image(omni.noise_image(0, 64, 64))["image_grid_thw"]
    assert grid.tolist() == [[1, 6, 6]]


READS = {
    **{name: (family.encoder.declaration.name, set()) for name, family in families.TEXT.items()},
    "qwen2_vl": ("Qwen2-VL", {"image", "video"}),
    "qwen3_vl": ("Qwen3-VL", {"image", "video"}),
    "qwen2_5_vl": ("Qwen2.5-VL", {"image", "video"}),
    "qwen2_5_omni": ("Qwen2.5-Omni", {"image", "video", "audio"}),
}


@pytest.mark.parametrize("name", sorted(families.FAMILIES))
def test_a_family_says_its_name_and_what_it_reads_without_a_checkpoint(name):
    declared = families.FAMILIES[name].encoder.declaration
    assert (declared.name, set(declared.medium_keys)) == READS[name]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_vl"])
def test_a_vision_language_family_without_parts_of_its_own_is_a_preset(name):
    family = families.FAMILIES[name]
    for part in (family.encoder, family.backbone):
        own = {key for key in vars(part) if not key.startswith("__")}
        assert own <= {"declaration", "tower_layers"}, "what the families do is in one place"


@pytest.mark.parametrize("name", sorted(families.FAMILIES))
def test_a_missing_checkpoint_is_one_sentence(name, tmp_path):
    family = families.FAMILIES[name]
    for part in (family.encoder, family.backbone):
        with pytest.raises(
            StageError, match=r"model configuration of .*missing' cannot be loaded \(there is no such folder\)"
        ) as error:
            part.from_checkpoint(tmp_path / "missing")
        assert "\n" not in str(error.value)
        with pytest.raises(StageError, match=r"model.checkpoint, or the checkpoint of a stage, must be a"):
            part.from_checkpoint("Nobody/has-this-one")


@pytest.mark.parametrize("name", sorted(families.FAMILIES))
def test_a_folder_without_weights_or_of_another_family_is_refused(name, tmp_path):
    family = families.FAMILIES[name]
    folder = families.build(name, tmp_path / "own")
    (folder / "model.safetensors").unlink()
    with pytest.raises(StageError, match=r"model checkpoint of .* cannot be loaded"):
        family.backbone.from_checkpoint(folder)
    other = "qwen2_vl" if name != "qwen2_vl" else "qwen2"
    with pytest.raises(
        StageError,
        match=f"holds a {other} model, not {family.backbone.declaration.name}; choose the model preset of its family",
    ):
        family.encoder.from_checkpoint(families.build(other, tmp_path / "other"))


def test_a_full_omni_configuration_gives_its_thinker(tmp_path):
    Qwen2_5OmniConfig().save_pretrained(tmp_path)
    from lightning_mmrl.models.families.qwen2_5_omni import FAMILY

    assert FAMILY.load_config(tmp_path).model_type == "qwen2_5_omni_thinker"
