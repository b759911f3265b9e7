"""Tiny, randomly initialised Qwen2-VL, Qwen2.5-VL and Qwen2.5 models with their real processors, built in code."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
)

from lightning_mmrl.models.tiny import (
    CHAT_TEMPLATE,
    MROPE,
    save_random_model,
    text_settings,
    train_tokenizer,
    vision_processors,
)

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
_RENAMED = {
    "<|vision_bos|>": "<|vision_start|>",
    "<|vision_eos|>": "<|vision_end|>",
    "<|IMAGE|>": "<|image_pad|>",
    "<|VIDEO|>": "<|video_pad|>",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyVisionBuilder:
    """Builds models of one vision-language family: its classes, and its names for the sizes of the vision tower.

    `tower` maps the widths of the tower and of the text model to settings of the tower.
    """

    config: Any
    model: Any
    processor: Any
    tower: Callable[[int, int], dict[str, Any]]

    def __call__(
        self,
        directory: Path,
        *,
        text: Sequence[str],
        seed: int = 0,
        hidden_size: int = 128,
        num_layers: int = 3,
        tower_size: int = 64,
        frame_size: int = 56,
    ) -> Path:
        """Saves weights, processor, chat template and generation config to `directory`.

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
        config = self.config(
            text_config={**_text_settings(tokenizer, hidden_size, num_layers), "rope_parameters": dict(MROPE)},
            vision_config={"depth": 2, "num_heads": 2, **self.tower(tower_size, hidden_size)},
            tie_word_embeddings=True,
            **_vision_ids(tokenizer),
        )
        save_random_model(self.model, config, tokenizer, directory, seed)
        images, videos = vision_processors(frame_size)
        self.processor(images, tokenizer, videos, _chat_template()).save_pretrained(directory)
        return directory


build_tiny_qwen2_5_vl = TinyVisionBuilder(
    config=Qwen2_5_VLConfig,
    model=Qwen2_5_VLForConditionalGeneration,
    processor=Qwen2_5_VLProcessor,
    tower=lambda width, out: {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "out_hidden_size": out,
        "fullatt_block_indexes": [1],
        "window_size": 56,
        "tokens_per_second": 2,
    },
)
build_tiny_qwen2_vl = TinyVisionBuilder(
    config=Qwen2VLConfig,
    model=Qwen2VLForConditionalGeneration,
    processor=Qwen2VLProcessor,
    tower=lambda width, out: {"embed_dim": width, "mlp_ratio": 2, "hidden_size": out},
)


def build_tiny_qwen2(
    directory: Path, *, text: Sequence[str], seed: int = 0, hidden_size: int = 128, num_layers: int = 3
) -> Path:
    """Builds a text-only Qwen2.5; arguments as for `TinyVisionBuilder`."""
    tokenizer = _tokenizer(text)
    tokenizer.chat_template = _chat_template()
    config = Qwen2Config(**_text_settings(tokenizer, hidden_size, num_layers), tie_word_embeddings=True)
    save_random_model(Qwen2ForCausalLM, config, tokenizer, directory, seed)
    tokenizer.save_pretrained(directory)
    return directory


def _tokenizer(text: Sequence[str]) -> Qwen2Tokenizer:
    return train_tokenizer(text, special_tokens=SPECIAL_TOKENS, media_tokens={})


def _chat_template() -> str:
    template = CHAT_TEMPLATE
    for omni, own in _RENAMED.items():
        template = template.replace(omni, own)
    return template


def _text_settings(tokenizer: Qwen2Tokenizer, hidden_size: int, num_layers: int) -> dict[str, Any]:
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return {**text_settings(tokenizer, hidden_size, num_layers), **ends}


def _vision_ids(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    return {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}
