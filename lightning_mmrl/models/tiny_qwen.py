"""Tiny, randomly initialised Qwen2-VL, Qwen2.5-VL and Qwen2.5 models with their real processors, built in code."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from lightning_mmrl.models.tiny import CHAT_TEMPLATE, HEAD_MULTIPLE, frame_bounds, train_tokenizer

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
HEAD_DIM = 32
_RENAMED = {
    "<|vision_bos|>": "<|vision_start|>",
    "<|vision_eos|>": "<|vision_end|>",
    "<|IMAGE|>": "<|image_pad|>",
    "<|VIDEO|>": "<|video_pad|>",
}


def build_tiny_qwen2_5_vl(
    directory: Path,
    *,
    text: Sequence[str],
    seed: int = 0,
    hidden_size: int = 128,
    num_layers: int = 3,
    tower_size: int = 64,
    frame_size: int = 56,
) -> Path:
    """Builds a Qwen2.5-VL and saves weights, processor, chat template and generation config to `directory`.

    Args:
        directory: Where the Hugging Face folder goes; it is created.
        text: Sentences the tokenizer learns its merges from; any other text still encodes, byte by byte.
        seed: Seed of the random weights.
        hidden_size: Width of the text model; a multiple of 32, the head dimension.
        num_layers: Decoder layers of the text model.
        tower_size: Width of the vision tower.
        frame_size: Height and width in pixels that square pictures and frames are resized to; a multiple of 28.
    """
    tokenizer = _tokenizer(text)
    config = Qwen2_5_VLConfig(
        text_config=_text_settings(tokenizer, hidden_size, num_layers) | _mrope(),
        vision_config={
            "depth": 2,
            "hidden_size": tower_size,
            "intermediate_size": 2 * tower_size,
            "num_heads": 2,
            "out_hidden_size": hidden_size,
            "fullatt_block_indexes": [1],
            "window_size": 56,
            "tokens_per_second": 2,
        },
        tie_word_embeddings=True,
        **_vision_ids(tokenizer),
    )
    _save(Qwen2_5_VLForConditionalGeneration, config, tokenizer, directory, seed)
    images, videos = _vision_processors(frame_size)
    Qwen2_5_VLProcessor(images, tokenizer, videos, _chat_template()).save_pretrained(directory)
    return directory


def build_tiny_qwen2_vl(
    directory: Path,
    *,
    text: Sequence[str],
    seed: int = 0,
    hidden_size: int = 128,
    num_layers: int = 3,
    tower_size: int = 64,
    frame_size: int = 56,
) -> Path:
    """Builds a Qwen2-VL; arguments as for `build_tiny_qwen2_5_vl`."""
    tokenizer = _tokenizer(text)
    config = Qwen2VLConfig(
        text_config=_text_settings(tokenizer, hidden_size, num_layers) | _mrope(),
        vision_config={
            "depth": 2,
            "embed_dim": tower_size,
            "mlp_ratio": 2,
            "num_heads": 2,
            "hidden_size": hidden_size,
        },
        tie_word_embeddings=True,
        **_vision_ids(tokenizer),
    )
    _save(Qwen2VLForConditionalGeneration, config, tokenizer, directory, seed)
    images, videos = _vision_processors(frame_size)
    Qwen2VLProcessor(images, tokenizer, videos, _chat_template()).save_pretrained(directory)
    return directory


def build_tiny_qwen2(
    directory: Path, *, text: Sequence[str], seed: int = 0, hidden_size: int = 128, num_layers: int = 3
) -> Path:
    """Builds a text-only Qwen2.5; arguments as for `build_tiny_qwen2_5_vl`."""
    tokenizer = _tokenizer(text)
    tokenizer.chat_template = _chat_template()
    config = Qwen2Config(**_text_settings(tokenizer, hidden_size, num_layers), tie_word_embeddings=True)
    _save(Qwen2ForCausalLM, config, tokenizer, directory, seed)
    tokenizer.save_pretrained(directory)
    return directory


def _tokenizer(text: Sequence[str]) -> Qwen2Tokenizer:
    return train_tokenizer(text, special_tokens=SPECIAL_TOKENS, media_tokens={})


def _chat_template() -> str:
    template = CHAT_TEMPLATE
    for omni, own in _RENAMED.items():
        template = template.replace(omni, own)
    return template


def _vision_processors(frame_size: int) -> tuple[Qwen2VLImageProcessor, Qwen2VLVideoProcessor]:
    return (
        Qwen2VLImageProcessor(size=frame_bounds(frame_size)),
        Qwen2VLVideoProcessor(size=frame_bounds(frame_size), cap_pixels_per_frame=False),
    )


def _text_settings(tokenizer: Qwen2Tokenizer, hidden_size: int, num_layers: int) -> dict[str, Any]:
    heads = hidden_size // HEAD_DIM
    return {
        "vocab_size": -(-len(tokenizer) // HEAD_MULTIPLE) * HEAD_MULTIPLE,
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _mrope() -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}}


def _vision_ids(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    return {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}


def _save(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    tokenizer: Qwen2Tokenizer,
    directory: Path,
    seed: int,
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, cast(int, tokenizer.convert_tokens_to_ids("<|endoftext|>"))],
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
    )
    model.save_pretrained(directory)
