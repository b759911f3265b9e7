"""Random models at the released 3B shape or at toy size, and prompts for them, without a processor.

Nothing here needs more than torch, transformers, numpy and jaxtyping: token ids are drawn, not tokenized, and pixels
are noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from bench_models import RELEASED_3B, SEED, SPREAD
from gpu_record import Setup
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from lightning_mmrl.data.collate import EncodedSample, collate_prompts
from lightning_mmrl.models.families.media_keys import VIDEO_GRID, VIDEO_PIXELS
from lightning_mmrl.models.families.qwen2_5_vl import Qwen25VL, layout
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.positions import prompt_positions
from lightning_mmrl.types.batches import MediaInputs, PromptBatch, ScoringBatch
from lightning_mmrl.types.records import Message, Sample

PAD, START, END, IMAGE, VIDEO, FIRST_ORDINARY = range(6)
"""Ids with a meaning in these models; all others are ordinary tokens."""
SECONDS_PER_PATCH = torch.tensor(1.0)
SECTIONS = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
TOY = {
    "text": {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 256,
        "vocab_size": 512,
        "max_position_embeddings": 32768,
        "rope_parameters": SECTIONS,
    },
    "vision": {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": 128,
        "fullatt_block_indexes": [1],
        "window_size": 56,
        "tokens_per_second": 2,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Changes to the sizes of a scale; None keeps a size."""

    layers: int | None = None
    depth: int | None = None
    vocabulary: int | None = None


def policy_of(setup: Setup, *, dtype: torch.dtype, sizes: Sizes | None = None) -> Policy:
    """The product's policy around a random model; each call draws the same weights."""
    torch.manual_seed(SEED)
    with torch.device(setup.device):
        model: Any = Qwen2_5_VLForConditionalGeneration._from_config(_config(setup, sizes or Sizes()), dtype=dtype)
    banned = (PAD, START, END, IMAGE, VIDEO)
    return Policy(Qwen25VL(model), banned_token_ids=banned).to(setup.device)


def spread(setup: Setup, policy: Policy) -> Policy:
    """Wider weights at toy size, where attention and positions would else hardly matter; returns the policy."""
    factor = setup.choose(toy=SPREAD, large=1.0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)
    return policy


def _config(setup: Setup, sizes: Sizes) -> Qwen2_5_VLConfig:
    base: Any = TOY if setup.scale == "toy" else RELEASED_3B
    text, vision = dict(base["text"]), dict(base["vision"])
    for part, name, value in (
        (text, "num_hidden_layers", sizes.layers),
        (text, "vocab_size", sizes.vocabulary),
        (vision, "depth", sizes.depth),
    ):
        if value is not None:
            part[name] = value
    # No end: every completion has its full length.
    text |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": PAD}
    vision["fullatt_block_indexes"] = [index for index in vision["fullatt_block_indexes"] if index < vision["depth"]]
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)


def text_prompts(setup: Setup, policy: Policy, lengths: Sequence[int]) -> PromptBatch:
    """Prompts of ordinary tokens with these lengths, padded on the left."""
    generator = np.random.default_rng(SEED)
    items = []
    for number, length in enumerate(lengths):
        ids = torch.from_numpy(generator.integers(FIRST_ORDINARY, policy.text_config.vocab_size, length))
        positions, following = prompt_positions([None] * length, ())
        items.append(_encoded(number, ids, positions, following))
    return collate_prompts(items, PAD).to(setup.device)


def clip_prompts(setup: Setup, policy: Policy, num_clips: int, grid: tuple[int, int, int]) -> PromptBatch:
    """Prompts of one clip each with this many patches in time, height and width."""
    config: Any = policy.model.config
    span = layout(config, "previous_maximum").clip(grid, SECONDS_PER_PATCH)
    kinds = (None, *span.kinds, None)
    ids = torch.tensor([START, *(VIDEO for _ in span.kinds), END])
    positions, following = prompt_positions(kinds, (span,))
    batch = collate_prompts([_encoded(number, ids, positions, following) for number in range(num_clips)], PAD)
    patches, vision = int(np.prod(grid)), config.vision_config
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    torch.manual_seed(SEED)
    tensors = {
        VIDEO_PIXELS: _own_patch(num_clips, patches, width, setup.device),
        VIDEO_GRID: torch.tensor([grid] * num_clips),
    }
    counts = {VIDEO_PIXELS: (patches,) * num_clips, VIDEO_GRID: (1,) * num_clips}
    return replace(batch, media=MediaInputs(tensors=tensors, counts=counts)).to(setup.device)


def _own_patch(num_clips: int, patches: int, width: int, device: torch.device) -> Tensor:
    """Pixels of clips, each a patch of its own with noise, so that attention to another clip's patches would show."""
    pixels = torch.randn(num_clips * patches, width, device=device)
    pixels.unflatten(0, (num_clips, patches)).add_(2 * torch.randn(num_clips, 1, width, device=device))
    return pixels


def _encoded(number: int, ids: Tensor, positions: Tensor, following: int) -> EncodedSample:
    prompt = {"input_ids": ids, "position_ids": positions, "next_position": torch.tensor([following])}
    message = Message(role="user", content="noise")
    return EncodedSample(sample=Sample(id=f"prompt-{number}", messages=(message,)), prompt=prompt)


def scoring_of(setup: Setup, policy: Policy, prompts: PromptBatch, lengths: Sequence[Sequence[int]]) -> ScoringBatch:
    """Completions of ordinary tokens with these lengths, [B][G]."""
    generator = np.random.default_rng(SEED + 1)
    flat = torch.tensor([length for group in lengths for length in group])
    mask = torch.arange(int(flat.max())) < flat[:, None]
    ids = torch.from_numpy(generator.integers(FIRST_ORDINARY, policy.text_config.vocab_size, mask.shape))
    return ScoringBatch(
        prompts=prompts,
        completion_ids=ids.masked_fill(~mask, PAD).to(setup.device),
        completion_mask=mask.to(setup.device),
        group_size=len(lengths[0]),
    )
