import families
import omni
import pytest
import torch

from lightning_mmrl.errors import ConfigError, MediaError
from lightning_mmrl.types.records import Message


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return families.load("qwen2", families.build("qwen2", tmp_path_factory.mktemp("qwen2")))


def turn(content):
    return (Message(role="user", content=content),)


def test_a_prompt_is_the_chat_template_with_equal_rows_of_positions(model):
    encoder, _ = model
    out = encoder.encode_prompt(turn("Which emotion?"), "<think>", [])
    chat = [{"role": "user", "content": "Which emotion?"}]
    text = encoder.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert out["input_ids"].tolist() == encoder.processor(text + "<think>").input_ids
    assert set(out) == {"input_ids", "position_ids", "next_position"}
    assert torch.equal(out["position_ids"], torch.arange(len(out["input_ids"])).expand(3, -1))
    assert out["next_position"].tolist() == [len(out["input_ids"])]


@pytest.mark.parametrize("kind", ["image", "video", "audio"])
def test_media_are_refused_with_the_same_sentence_for_every_sample(model, kind):
    encoder, _ = model
    assert encoder.media_kinds == frozenset()
    sentence = f"Qwen2 reads text alone, not {kind}; choose a model that reads {kind} or leave the <{kind}> media out"
    media = {"image": omni.noise_image(0), "video": omni.noise_video(0), "audio": omni.noise_audio(0)}
    with pytest.raises(MediaError, match=sentence):
        getattr(encoder, f"encode_{kind}")(media[kind])
    with pytest.raises(MediaError, match=sentence):
        encoder.encode_prompt(turn(f"<{kind}>Which emotion?"), "", [])
    with pytest.raises(MediaError, match=sentence):
        {"image": encoder.blank_image, "video": encoder.blank_video, "audio": encoder.silent_audio}[kind]({})


def test_targets_end_and_decode_back(model):
    encoder, _ = model
    ids = encoder.encode_target("angry 42")
    assert ids[-1] == encoder.eos_token_ids[0]
    assert encoder.decode(ids) == "angry 42"


def test_unused_head_rows_are_banned_and_ends_are_not(model):
    encoder, policy = model
    assert encoder.banned_token_ids() == tuple(range(len(encoder.processor), encoder.config.vocab_size))
    assert not set(encoder.eos_token_ids) & set(encoder.banned_token_ids())
    assert policy.media.towers_train is False


def test_freezing_text_freezes_the_tied_head_and_there_is_no_tower(model):
    _, policy = model
    assert policy.freeze(["text"]) == sum(p.numel() for p in policy.model.parameters())
    assert not policy.model.lm_head.weight.requires_grad
    policy.model.requires_grad_(True)
    with pytest.raises(ConfigError, match="unknown group 'audio'; this family has text"):
        policy.freeze(["audio"])
