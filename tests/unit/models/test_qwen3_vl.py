"""Special to Qwen3-VL: times between frames, and features that enter the decoder's first layers."""

import families
import numpy as np
import omni
import pytest
import torch
from torch.nn.functional import pad
from transformers.video_utils import VideoMetadata

from lightning_mmrl.models.families.qwen3_vl import patch_times
from lightning_mmrl.models.families.qwen_vision import normalized
from lightning_mmrl.types.batches import MediaInputs
from lightning_mmrl.types.media import DecodedVideo
from lightning_mmrl.types.records import Message

EXACT = 1e-9
CONTENTS = (
    "<image>angry<video>user",
    "<video>Which emotion?<image>angry",
    "<image><image>user",
    "<video><video>",
    "user",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    encoder, policy = families.load("qwen3_vl", families.build("qwen3_vl", tmp_path_factory.mktemp("qwen3_vl")))
    omni.spread(policy.model)
    return encoder, families.FAMILIES["qwen3_vl"].backbone(policy.model)


@pytest.fixture(scope="module")
def prompts(model):
    """Each prompt alone; media in the order of their tags, of different sizes."""
    encoder, _ = model
    encoded = []
    for number, content in enumerate(CONTENTS):
        media = []
        for seed, tag in enumerate(tag for tag in content.split(">") if "<" in tag):
            if tag.endswith("<image"):
                media.append(encoder.encode_image(omni.noise_image(10 * number + seed, 64, 64 + 64 * seed)))
            else:
                media.append(encoder.encode_video(omni.noise_video(10 * number + seed, num_frames=3 + seed)))
        encoded.append(encoder.encode_prompt((Message(role="user", content=content),), "", media))
    return encoded


def stock_states(backbone, prompt):
    """The last states of one prompt through the stock model, which finds its own positions."""
    ids = prompt["input_ids"][None]
    media = normalized({key: value for key, value in prompt.items() if key.startswith(("pixel", "image", "video"))})
    types = (ids == backbone.model.config.image_token_id).int() + 2 * (
        ids == backbone.model.config.video_token_id
    ).int()
    return backbone.model.model(input_ids=ids, mm_token_type_ids=types, **media).last_hidden_state[0]


def inputs_of(backbone, prompts):
    """Ids, feature rows and slots of several prompts, by kind, their media run through the tower together."""
    keys = {key for prompt in prompts for key in prompt if key.startswith(("pixel", "image", "video"))}
    tensors = {key: torch.cat([prompt[key] for prompt in prompts if key in prompt]) for key in keys}
    return backbone.media_features(MediaInputs(tensors=tensors, counts={}))


def decoded(backbone, embeddings, positions, more, **attention):
    return backbone.text_model(inputs_embeds=embeddings, position_ids=positions, **more, **attention).last_hidden_state


def slots_of(backbone, ids):
    return {kind: ids == token for kind, token in backbone.placeholder_ids.items()}


@torch.no_grad()
@pytest.mark.parametrize("number", range(len(CONTENTS)))
def test_one_row_equals_the_stock_model(model, prompts, number):
    _, backbone = model
    prompt = prompts[number]
    ids = prompt["input_ids"][None]
    features = inputs_of(backbone, [prompt])
    embeddings = backbone.text_model.get_input_embeddings()(ids)
    placed, more = backbone.place_features(embeddings, slots_of(backbone, ids), features)
    ours = decoded(backbone, placed, prompt["position_ids"][:, None], more)[0]
    stock = stock_states(backbone, prompt)
    torch.testing.assert_close(ours, stock, rtol=0, atol=EXACT)
    if not features:
        assert more == {}
        return
    assert (decoded(backbone, placed, prompt["position_ids"][:, None], {})[0] - stock).abs().max() > 0.01
    swapped = {**more, "deepstack_visual_embeds": more["deepstack_visual_embeds"][::-1]}
    assert (decoded(backbone, placed, prompt["position_ids"][:, None], swapped)[0] - stock).abs().max() > 0.01


@torch.no_grad()
def test_prompts_packed_into_one_row_equal_the_stock_model(model, prompts):
    _, backbone = model
    ids = torch.cat([prompt["input_ids"] for prompt in prompts])[None]
    positions = torch.cat([prompt["position_ids"] for prompt in prompts], dim=-1)[:, None]
    owner = torch.cat([torch.full_like(prompt["input_ids"], number) for number, prompt in enumerate(prompts)])
    mask = (owner[:, None] == owner) & torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    embeddings = backbone.text_model.get_input_embeddings()(ids)
    placed, more = backbone.place_features(embeddings, slots_of(backbone, ids), inputs_of(backbone, prompts))
    ours = decoded(backbone, placed, positions, more, attention_mask=mask[None, None])[0]
    stock = torch.cat([stock_states(backbone, prompt) for prompt in prompts])
    torch.testing.assert_close(ours, stock, rtol=0, atol=EXACT)


@torch.no_grad()
def test_prompts_in_left_padded_rows_equal_the_stock_model(model, prompts):
    _, backbone = model
    width = max(len(prompt["input_ids"]) for prompt in prompts)
    gaps = [width - len(prompt["input_ids"]) for prompt in prompts]
    ids = torch.stack([pad(prompt["input_ids"], (gap, 0)) for prompt, gap in zip(prompts, gaps, strict=True)])
    positions = torch.stack(
        [pad(prompt["position_ids"], (gap, 0)) for prompt, gap in zip(prompts, gaps, strict=True)], dim=1
    )
    embeddings = backbone.text_model.get_input_embeddings()(ids)
    placed, more = backbone.place_features(embeddings, slots_of(backbone, ids), inputs_of(backbone, prompts))
    mask = (torch.arange(width) >= torch.tensor(gaps)[:, None]).long()
    ours = decoded(backbone, placed, positions, more, attention_mask=mask)
    for row, (prompt, gap) in enumerate(zip(prompts, gaps, strict=True)):
        torch.testing.assert_close(ours[row, gap:], stock_states(backbone, prompt), rtol=0, atol=EXACT)


def test_rows_carry_the_deepstack_layers_and_gradients_reach_them(model, prompts):
    _, backbone = model
    width, layers = backbone.text_model.config.hidden_size, backbone.model.config.vision_config.deepstack_visual_indexes
    features = {kind: rows.detach().requires_grad_() for kind, rows in inputs_of(backbone, prompts[:1]).items()}
    assert {rows.shape[1] for rows in features.values()} == {width * (1 + len(layers))}
    ids = prompts[0]["input_ids"][None]
    embeddings = backbone.text_model.get_input_embeddings()(ids)
    placed, more = backbone.place_features(embeddings, slots_of(backbone, ids), features)
    states = decoded(backbone, placed, prompts[0]["position_ids"][:, None], more)
    states[0, -1].sum().backward()
    for rows in features.values():
        assert all(piece.abs().max() > 0 for piece in rows.grad.split(width, dim=-1))


def test_the_tower_runs_once_for_pictures_and_clips(model, prompts):
    _, backbone = model
    runs = []
    handle = backbone.towers[0].register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        inputs_of(backbone, prompts)
    handle.remove()
    assert len(runs) == 1


@pytest.mark.parametrize("num_frames", [2, 3, 5, 8])
def test_the_times_of_a_clip_are_those_of_the_processor(model, num_frames):
    encoder, _ = model
    times = tuple(0.37 * np.arange(num_frames) ** 1.5 + 0.2)
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, 64, 64, 3), dtype=np.uint8)
    clip = DecodedVideo(frames=frames, timestamps_s=times, duration_s=30.0)
    ours = encoder.encode_prompt((Message(role="user", content="<video>user"),), "", [encoder.encode_video(clip)])
    metadata = VideoMetadata(total_num_frames=num_frames, fps=10.0, frames_indices=[10 * time for time in times])
    text = encoder.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "user"}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    theirs = encoder.processor(text=text, videos=[frames], video_metadata=[metadata], return_tensors="pt")
    assert torch.equal(ours["input_ids"], theirs["input_ids"][0])
    assert torch.equal(normalized(ours)["pixel_values_videos"], theirs["pixel_values_videos"])
    late = DecodedVideo(frames=frames, timestamps_s=tuple(time + 1.0 for time in times), duration_s=30.0)
    other = encoder.encode_prompt((Message(role="user", content="<video>user"),), "", [encoder.encode_video(late)])
    assert encoder.decode(other["input_ids"].tolist()) != encoder.decode(ours["input_ids"].tolist())


def test_the_last_frame_fills_the_last_patch():
    assert patch_times([0.0, 1.0, 4.0], 2).tolist() == [0.5, 4.0]
    assert patch_times([1.0, 2.0, 6.0], 3).tolist() == [3.5]
