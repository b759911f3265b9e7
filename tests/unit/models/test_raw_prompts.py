"""A prompt without a chat template is the text that the user wrote, with media as the family marks them."""

from copy import deepcopy
from dataclasses import replace

import families
import omni
import pytest
import torch

from lightning_mmrl.errors import DataError, MediaError
from lightning_mmrl.prompts.template import media_tags
from lightning_mmrl.types.records import Message

RAW = "Sum \\boxed{2}.\nUser: {question} \nAssistant: step by step.\n"
PREFILL = "<think>"
SEEN = {
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
}
PLACES = {
    "qwen2_5_omni": {
        "image": "<|vision_bos|><|IMAGE|><|vision_eos|>",
        "video": "<|vision_bos|><|VIDEO|><|vision_eos|>",
        "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
    },
    "qwen2_vl": SEEN,
    "qwen2_5_vl": SEEN,
    "qwen3_vl": SEEN,
}
"""How the chat templates of the released checkpoints write media."""


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def encoder(name, tmp_path_factory):
    return families.FAMILIES[name].encoder.from_checkpoint(families.build(name, tmp_path_factory.mktemp(name)))


def chatting(encoder, name, before="User: "):
    """The same family with a chat template that writes RAW."""
    parts = "".join(
        f"{{% if part['type'] == '{kind}' %}}{text}{{% endif %}}" for kind, text in PLACES.get(name, {}).items()
    )
    content = "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    content += f"{{% for part in message['content'] %}}{parts}{{{{ part['text'] }}}}{{% endfor %}}{{% endif %}}"
    template = (
        "Sum \\boxed{2}.\n{% for message in messages %}"
        + before
        + content
        + " \nAssistant: step by step.\n{% endfor %}"
    )
    own = replace(encoder, processor=deepcopy(encoder.processor))
    own.processor.chat_template = template
    return own


def media_of(encoder, content):
    noise = {
        "image": lambda: encoder.encode_image(omni.noise_image(0)),
        "video": lambda: encoder.encode_video(omni.noise_video(0)),
        "audio": lambda: encoder.encode_audio(omni.noise_audio(0)),
    }
    return [noise[kind]() for kind in media_tags(content)]


def turn(content):
    return (Message(role="user", content=content),)


def test_a_raw_text_like_the_chat_templates_gives_the_same_prompt(encoder, name):
    template, other = chatting(encoder, name), chatting(encoder, name, before="User:")
    for content in families.FAMILIES[name].contents:
        media = media_of(encoder, content)
        raw = encoder.encode_prompt(turn(content), PREFILL, media, RAW)
        chat = template.encode_prompt(turn(content), PREFILL, media)
        assert raw.keys() == chat.keys()
        assert all(torch.equal(raw[key], chat[key]) for key in raw)
        # Another space, or the checkpoint's own template, is another prompt.
        for control in (other, encoder):
            ids = control.encode_prompt(turn(content), PREFILL, media)["input_ids"]
            assert ids.tolist() != raw["input_ids"].tolist()


def test_clip_and_sound_in_turns_are_one_medium_in_a_raw_text_too(tmp_path):
    folder = families.build("qwen2_5_omni", tmp_path)
    encoder = families.FAMILIES["qwen2_5_omni"].encoder.from_checkpoint(folder, audio_in_video="interleaved")
    content = "<video><audio>Which emotion?"
    media = media_of(encoder, content)
    raw = encoder.encode_prompt(turn(content), "", media, RAW)
    chat = chatting(encoder, "qwen2_5_omni").encode_prompt(turn(content), "", media)
    apart = (
        families.FAMILIES["qwen2_5_omni"].encoder.from_checkpoint(folder).encode_prompt(turn(content), "", media, RAW)
    )
    assert torch.equal(raw["input_ids"], chat["input_ids"])
    assert torch.equal(raw["position_ids"], chat["position_ids"])
    assert apart["input_ids"].tolist() != raw["input_ids"].tolist()


def test_no_chat_template_is_needed(encoder):
    own = replace(encoder, processor=deepcopy(encoder.processor))
    own.processor.chat_template = None
    ids = own.encode_prompt(turn("angry {question}"), PREFILL, [], RAW)["input_ids"]
    text = "Sum \\boxed{2}.\nUser: angry {question} \nAssistant: step by step.\n<think>"
    assert ids.tolist() == own.tokenizer(text).input_ids


def test_a_control_token_in_any_text_is_refused(encoder):
    token = next(token.content for token in encoder.tokenizer.added_tokens_decoder.values() if token.special)
    for content, prefill, raw in ((token, "", RAW), ("a", token, RAW), ("a", "", RAW + token)):
        with pytest.raises(DataError, match="holds the control token"):
            encoder.encode_prompt(turn(content), prefill, [], raw)


def test_a_medium_that_the_family_does_not_read_is_refused(encoder):
    for kind in {"image", "video", "audio"} - encoder.media_kinds:
        with pytest.raises(MediaError, match=f"not {kind}"):
            encoder.encode_prompt(turn(f"<{kind}>Which?"), "", [], RAW)
