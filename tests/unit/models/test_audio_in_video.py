"""A clip and its sound in turns: prompts of the omni encoder against the stock processor, positions and model."""

import families
import omni
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.data.collate import TEXT_KEYS
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.models.chat import content_parts
from lightning_mmrl.models.families.qwen2_5_omni import OmniEncoder, OmniThinker
from lightning_mmrl.models.families.qwen_vision import normalized
from lightning_mmrl.types.batches import MediaInputs
from lightning_mmrl.types.records import Message

WORDS = ("angry", "Which emotion?", "user")
NICE_RATES = (0.5, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 24, 25, 30)
"""Frame rates at which float32 and float64 agree on the turn that a frame pair falls into."""
merged = st.integers(1, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = omni.build(tmp_path_factory.mktemp("omni"))
    encoders = {
        (rule, how): OmniEncoder.from_checkpoint(folder, position_rule=rule, audio_in_video=how)
        for rule in ("previous_maximum", "transformers")
        for how in ("separate", "interleaved")
    }
    for encoder in encoders.values():
        encoder.config.get_text_config().max_position_embeddings = 10**6  # the clips here may be an hour long
    backbone = OmniThinker.from_checkpoint(folder, dtype=torch.float64)
    families.exact(backbone.model)
    omni.spread(backbone.model)
    return encoders, backbone


def picture(height, width):
    return {"image_grid_thw": torch.tensor([[1, 2 * height, 2 * width]])}


def clip(rate, frames, height, width):
    seconds = torch.tensor([2 / rate], dtype=torch.float32)
    return {"video_grid_thw": torch.tensor([[frames, 2 * height, 2 * width]]), "video_second_per_grid": seconds}


def sound(frames):
    return {"feature_attention_mask": torch.ones(1, frames, dtype=torch.int32)}


pictures = st.tuples(st.just("<image>"), merged, merged)
sounds = st.tuples(st.just("<audio>"), st.integers(3, 900))


def prompts(rates):
    """Prompts as numbers: words, sizes of pictures, lengths of sounds, and clips with the length of their sound."""
    both = st.tuples(st.just("<video><audio>"), rates, st.integers(1, 30), merged, merged, st.integers(3, 900))
    return st.lists(st.one_of(pictures, sounds, both, st.tuples(st.sampled_from(WORDS))), max_size=6)


def made(parts):
    """Text, and media in the order of their tags."""
    media = []
    for tag, *sizes in parts:
        if tag == "<image>":
            media.append(picture(*sizes))
        if tag == "<audio>":
            media.append(sound(*sizes))
        if tag == "<video><audio>":
            media += [clip(*sizes[:-1]), sound(sizes[-1])]
    return "".join(tag for tag, *_ in parts), media


def encode(encoder, content, media):
    return encoder.encode_prompt((Message(role="user", content=content),), "", media)


def stock_ids(encoder, content, media, rates):
    """The processor's own expansion, for which the sound of a clip has no tag."""
    parts = content_parts(content.replace("<video><audio>", "<video>"))
    text = encoder.processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
    )
    frames = [int(item["feature_attention_mask"].sum()) for item in media if "feature_attention_mask" in item]
    [expanded] = encoder.processor.replace_multimodal_special_tokens(
        [text],
        iter([((length - 1) // 2 + 1 - 2) // 2 + 1 for length in frames]),
        iter([item["image_grid_thw"][0].numpy() for item in media if "image_grid_thw" in item]),
        iter([item["video_grid_thw"][0].numpy() for item in media if "video_grid_thw" in item]),
        video_second_per_grid=iter([2 / rate for rate in rates]),
        use_audio_in_video=True,
        position_id_per_seconds=encoder.config.position_id_per_seconds,
        seconds_per_chunk=encoder.config.seconds_per_chunk,
    )
    return encoder.tokenizer(expanded, return_tensors="pt").input_ids[0]


def stock_positions(backbone, ids, media):
    return families.omni_positions(backbone.model, ids, families.stacked(media), use_audio_in_video=True)


@given(parts=prompts(st.sampled_from(NICE_RATES)))
def test_ids_are_those_of_the_processor(model, parts):
    encoder = model[0]["previous_maximum", "interleaved"]
    content, media = made(parts)
    rates = [rate for _, rate, *_ in (part for part in parts if len(part) == 6)]
    assert torch.equal(encode(encoder, content, media)["input_ids"], stock_ids(encoder, content, media, rates))


@given(parts=prompts(st.one_of(st.sampled_from(NICE_RATES), st.floats(0.2, 30))))
def test_under_its_rule_positions_are_those_of_transformers(model, parts):
    encoders, backbone = model
    content, media = made(parts)
    out = encode(encoders["transformers", "interleaved"], content, media)
    assert torch.equal(out["position_ids"], stock_positions(backbone, out["input_ids"], media))
    assert out["next_position"].item() == out["position_ids"][0, -1].item() + 1


@given(parts=prompts(st.floats(0.2, 30)))
def test_behind_clip_and_sound_text_is_ahead_of_both(model, parts):
    encoder = model[0]["previous_maximum", "interleaved"]
    content, media = made(parts)
    out = encode(encoder, f"{content}user", media)
    assert out["position_ids"][0, -1] == out["position_ids"].max()
    other = encode(model[0]["transformers", "interleaved"], f"{content}user", media)
    assert out["next_position"] >= other["next_position"]


def test_the_rules_part_where_the_last_turn_ends_before_an_earlier_one(model):
    encoders, _ = model
    # Frame pairs at 0 and 1.96 s, sound of 2 s and one token: the sound's last turn is the last, and ends later.
    agree = [clip(2 / 1.96, 2, 1, 1), sound(204)]
    # A clip of 6x6 rows reaches further than its sound of 4 tokens, which is in the same, last turn.
    part = [clip(2, 1, 6, 6), sound(16)]
    for media, same in ((agree, True), (part, False)):
        one, other = (
            encode(encoders[rule, "interleaved"], "<video><audio>user", media)
            for rule in ("previous_maximum", "transformers")
        )
        assert torch.equal(one["position_ids"], other["position_ids"]) is same


def test_turns_are_cut_where_positions_say_at_every_rate(model):
    encoder = model[0]["transformers", "interleaved"]
    # At 1.04 frames a second patch 26 starts at 50 s, a multiple of 2 s, in float32, and a hair before it in float64.
    media = [clip(1.04, 30, 1, 1), sound(6_000)]
    assert int(26 * (2 / 1.04) * 25) == 1249
    out = encode(encoder, "<video><audio>", media)
    slots = out["input_ids"] == encoder.config.video_token_id
    times = out["position_ids"][0] - out["position_ids"][0, slots][0]
    assert times[slots][26].item() == 1250
    body = slots | (out["input_ids"] == encoder.config.audio_token_id)
    assert ((times // encoder.layout.chunk)[body].diff() >= 0).all(), "the tokens of one turn stand together"
    assert not torch.equal(out["input_ids"], stock_ids(encoder, "<video><audio>", media, [1.04]))


def test_clip_and_sound_are_separate_unless_asked_and_where_text_stands_between(model):
    encoders, _ = model
    media = [clip(2, 4, 2, 2), sound(300)]
    one, other = (
        encode(encoders["previous_maximum", how], "<video><audio>user", media) for how in ("separate", "interleaved")
    )
    assert one["input_ids"].tolist() != other["input_ids"].tolist()
    assert sorted(one["input_ids"].tolist()) == sorted(other["input_ids"].tolist())
    assert encoders["previous_maximum", "separate"] == OmniEncoder(
        processor=encoders["previous_maximum", "separate"].processor,
        config=encoders["previous_maximum", "separate"].config,
        eos_token_ids=encoders["previous_maximum", "separate"].eos_token_ids,
    )
    for content in ("<video>user<audio>", "<audio><video>"):
        apart = [encode(encoders["previous_maximum", how], content, media) for how in ("separate", "interleaved")]
        assert torch.equal(apart[0]["input_ids"], apart[1]["input_ids"])
        assert torch.equal(apart[0]["position_ids"], apart[1]["position_ids"])


def test_a_silent_clip_beside_one_with_sound(model):
    encoder = model[0]["previous_maximum", "interleaved"]
    media = [clip(2, 3, 2, 2), clip(2, 4, 2, 2), sound(300)]
    out = encode(encoder, "<video>user<video><audio>", media)
    alone = encode(model[0]["previous_maximum", "separate"], "<video>user", media[:1])
    width = len(alone["input_ids"]) - len(encoder.tokenizer("<|im_end|>\n<|im_start|>assistant\n").input_ids)
    assert torch.equal(out["input_ids"][:width], alone["input_ids"][:width])
    assert torch.equal(out["position_ids"][:, :width], alone["position_ids"][:, :width])
    assert (out["input_ids"] == encoder.config.video_token_id).sum() == (3 + 4) * 4


@torch.no_grad()
def test_states_are_those_of_the_stock_model(model):
    encoders, backbone = model
    encoder = encoders["transformers", "interleaved"]
    media = [
        encoder.encode_video(omni.noise_video(0, num_frames=8, duration_s=6.0)),
        encoder.encode_audio(omni.noise_audio(0)),
    ]
    out = encode(encoder, "<video><audio>user", media)
    ids, tensors = out["input_ids"][None], normalized({key: out[key] for key in out if key not in TEXT_KEYS})
    stock = backbone.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        video_second_per_grid=media[0]["video_second_per_grid"],
        use_audio_in_video=True,
        **tensors,
    ).logits
    slots = {kind: ids == token for kind, token in backbone.placeholder_ids.items()}
    features = backbone.media_features(MediaInputs(tensors=tensors, counts={}))
    embeddings, _ = backbone.place_features(backbone.text_model.get_input_embeddings()(ids), slots, features)

    def logits(positions):
        states = backbone.text_model(inputs_embeds=embeddings, position_ids=positions[:, None]).last_hidden_state
        return backbone.head(states)

    torch.testing.assert_close(logits(out["position_ids"]), stock, rtol=0, atol=1e-9)
    counted = torch.arange(ids.shape[1]).expand(3, -1)
    assert (logits(counted) - stock).abs().max() > 0.01


@pytest.mark.parametrize("name", ["qwen2", "qwen2_5_vl", "qwen3_vl"])
def test_a_family_without_ears_refuses(name, tmp_path):
    with pytest.raises(ConfigError, match=r"model.audio_in_video is 'interleaved', but Qwen.* reads no sound"):
        families.FAMILIES[name].encoder.from_checkpoint(tmp_path, audio_in_video="interleaved")
