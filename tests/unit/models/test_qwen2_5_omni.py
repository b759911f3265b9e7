import numpy as np
import omni
import pytest
import torch

from lightning_mmrl.errors import ConfigError, MediaError
from lightning_mmrl.models.families.qwen_vision import normalized
from lightning_mmrl.types.media import DecodedVideo
from lightning_mmrl.types.records import Message


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return omni.load(omni.build(tmp_path_factory.mktemp("omni")))


def test_the_encoder_equals_the_processor(model):
    encoder, _ = model
    image, video, audio = omni.noise_image(0), omni.noise_video(0), omni.noise_audio(0, 20_000)
    messages = (Message(role="user", content="<video>look<image><audio>Which emotion?"),)
    media = [encoder.encode_video(video), encoder.encode_image(image), encoder.encode_audio(audio)]
    ours = normalized(encoder.encode_prompt(messages, "", media))
    parts = [{"type": "video"}, {"type": "text", "text": "look"}, {"type": "image"}, {"type": "audio"}]
    chat = [{"role": "user", "content": [*parts, {"type": "text", "text": "Which emotion?"}]}]
    text = encoder.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    size = encoder.processor.video_processor.size
    theirs = encoder.processor(
        text=text,
        images=[image.pixels],
        videos=[video.frames],
        audio=[audio.waveform],
        videos_kwargs={"fps": video.sampled_fps, "size": dict(size)},
        return_tensors="pt",
    )
    assert torch.equal(ours["input_ids"], theirs["input_ids"][0])
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    assert torch.equal(ours["pixel_values_videos"], theirs["pixel_values_videos"])
    assert torch.equal(ours["video_grid_thw"], theirs["video_grid_thw"])
    valid = int(theirs["feature_attention_mask"].sum())
    assert ours["input_features"].shape[-1] == valid
    # The processor's spectrogram ends in its window of zeros, ours after two analysis windows of zeros.
    torch.testing.assert_close(ours["input_features"][0], theirs["input_features"][0, :, :valid], rtol=0, atol=1e-5)


def test_positions_follow_the_clock_of_the_clip(model):
    encoder, _ = model
    messages = (Message(role="user", content="<video>Which emotion?"),)
    out = encoder.encode_prompt(messages, "", [encoder.encode_video(omni.noise_video(0, duration_s=3.0))])
    slots = out["input_ids"] == encoder.processor.tokenizer.convert_tokens_to_ids("<|VIDEO|>")
    times = out["position_ids"][0, slots].unique()
    # Two temporal patches of two frames, 1.5 s apart, at 25 positions per second: floor(37.5).
    assert (times[1] - times[0]).item() == 37
    assert out["next_position"].item() == out["position_ids"].max().item() + 1


def test_silence_and_grey_keep_every_shape_and_change_the_content(model):
    encoder, _ = model
    video, audio = encoder.encode_video(omni.noise_video(3)), encoder.encode_audio(omni.noise_audio(3))
    blank, silent = encoder.blank_video(video), encoder.silent_audio(audio)
    assert {k: v.shape for k, v in blank.items()} == {k: v.shape for k, v in video.items()}
    assert {k: v.shape for k, v in silent.items()} == {k: v.shape for k, v in audio.items()}
    assert blank["pixel_values_videos"].eq(128).all()
    assert silent["input_features"].std() == 0
    assert not torch.equal(blank["pixel_values_videos"], video["pixel_values_videos"])


@pytest.mark.parametrize("size", [(56, 56), (64, 30), (200, 40)])
def test_a_grey_picture_keeps_the_shape_also_where_resizing_twice_would_not(model, size):
    encoder, _ = model
    image = encoder.encode_image(omni.noise_image(3, *size))
    blank = encoder.blank_image(image)
    assert torch.equal(blank["image_grid_thw"], image["image_grid_thw"])
    assert blank["pixel_values"].shape == image["pixel_values"].shape
    assert blank["pixel_values"].eq(128).all()
    frames = np.broadcast_to(omni.noise_image(3, *size).pixels, (4, *size, 3)).copy()
    video = encoder.encode_video(DecodedVideo(frames=frames, timestamps_s=(0.1, 0.2, 0.3, 0.4), duration_s=0.5))
    assert encoder.blank_video(video)["pixel_values_videos"].shape == video["pixel_values_videos"].shape


@pytest.mark.parametrize("size", [28, 38, 64, 96, 224, 300])
def test_pictures_and_frames_are_resized_to_the_frame_size(model, size):
    encoder, _ = model
    image = omni.noise_image(0, size, size)
    clip = DecodedVideo(frames=np.stack([image.pixels] * 2), timestamps_s=(0.1, 0.2), duration_s=0.3)
    assert (14 * encoder.encode_image(image)["image_grid_thw"]).tolist() == [[14, 56, 56]]
    assert (14 * encoder.encode_video(clip)["video_grid_thw"]).tolist() == [[14, 56, 56]]


def test_an_image_a_silent_clip_and_text_share_a_batch(model):
    encoder, policy = model
    batch = omni.prompts(encoder, ["<image>angry", "<video>Which emotion?", "Which emotion?"])
    assert batch.media.counts["pixel_values"] == (24, 0, 0)
    assert batch.media.counts["pixel_values_videos"] == (0, 32, 0)
    with torch.no_grad():
        together = policy.media.features(batch)
        assert {kind: len(rows) for kind, rows in together.items()} == {"image": 6, "video": 8}
        for row, kind in enumerate(("image", "video")):
            alone = policy.media.features(batch.select([row]))
            torch.testing.assert_close(alone, {kind: together[kind]}, rtol=0, atol=1e-9)


def test_a_sound_longer_than_the_window_is_refused(model):
    encoder, _ = model
    with pytest.raises(MediaError, match=r"2\.50 s is longer than the model's audio window of 2\.00 s"):
        encoder.encode_audio(omni.noise_audio(0, 40_000))


def test_banned_ids_cover_media_and_unused_head_rows(model):
    encoder, policy = model
    banned = encoder.banned_token_ids()
    assert encoder.processor.tokenizer.convert_tokens_to_ids("<|AUDIO|>") in banned
    assert encoder.config.text_config.vocab_size % 32 == 0
    assert set(range(len(encoder.processor.tokenizer), encoder.config.text_config.vocab_size)) <= set(banned)
    assert not set(encoder.eos_token_ids) & set(banned)
    assert policy.banned.sum().item() == len(banned)


def test_features_without_placeholders_are_refused(model):
    encoder, policy = model
    batch = omni.prompts(encoder, ["<audio>angry"])
    other = batch.input_ids.clone()
    other[other == encoder.config.audio_token_id] = encoder.pad_token_id
    object.__setattr__(batch, "input_ids", other)
    with pytest.raises(MediaError, match="sample p0: 0 audio placeholders but 37 audio feature rows"):
        policy.media.features(batch)


def test_freezing_selects_real_parameters_and_refuses_unknown_groups(tmp_path):
    _, policy = omni.load(omni.build(tmp_path))
    frozen = policy.freeze(["vision"])
    assert frozen == sum(p.numel() for p in policy.model.visual.parameters())
    assert not any(p.requires_grad for p in policy.model.visual.parameters())
    assert all(p.requires_grad for p in policy.model.audio_tower.parameters())
    with pytest.raises(
        ConfigError,
        match="unknown group 'towers'; this family has audio, audio_tower, proj",
    ):
        policy.freeze(["towers"])


def test_audio_of_different_length_in_one_batch(model):
    encoder, policy = model
    batch = omni.prompts(encoder, ["<audio>angry", "<audio>Which emotion?"])
    assert batch.media.tensors["feature_attention_mask"].sum(-1).tolist() == [150, 140]
    with torch.no_grad():
        together = policy.media.features(batch)["audio"]
        alone = policy.media.features(batch.select([1]))["audio"]
    np.testing.assert_allclose(together[-len(alone) :].numpy(), alone.numpy(), atol=1e-6)
