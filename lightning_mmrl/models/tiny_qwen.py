"""Tiny, randomly initialised models of all Qwen families except omni, with their real processors, built in code."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
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
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from lightning_mmrl.models.tiny import (
    CHAT_TEMPLATE,
    HEAD_DIM,
    MROPE,
    frame_bounds,
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
_CHAT_TEMPLATE = reduce(lambda template, names: template.replace(*names), _RENAMED.items(), CHAT_TEMPLATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyVisionBuilder:
    """Builds models of one vision-language family: its classes, and its names for the sizes of the vision tower.

    `tower` maps the widths of the tower and of the text model to settings of the tower; `processors` maps the size of
    frames to the processors of pictures and clips. `unit` is the side in pixels of the square of one feature row.
    """

    config: Any
    model: Any
    processor: Any
    tower: Callable[[int, int], dict[str, Any]]
    text: Mapping[str, Any] = field(default_factory=lambda: {"rope_parameters": MROPE})
    processors: Callable[[int], tuple[Any, Any]] = vision_processors
    unit: int = 28

    def __call__(
        self,
        directory: Path,
        *,
        text: Sequence[str],
        seed: int = 0,
        hidden_size: int = 128,
        num_layers: int = 3,
        tower_size: int = 64,
        frame_size: int | None = None,
    ) -> Path:
        """Saves weights, processor, chat template and generation config to `directory`.

        Args:
            directory: Where the Hugging Face folder goes; it is created.
            text: Sentences the tokenizer learns its merges from; any other text still encodes, byte by byte.
            seed: Seed of the random weights.
            hidden_size: Width of the text model; a multiple of 32, the head dimension.
            num_layers: Decoder layers of the text model.
            tower_size: Width of the vision tower.
            frame_size: Height and width in pixels that square pictures and frames are resized to; a multiple of the
                builder's unit, null for twice the unit.
        """
        tokenizer = train_tokenizer(text, special_tokens=SPECIAL_TOKENS, media_tokens={})
        names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
        names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
        config = self.config(
            text_config={**_text_settings(tokenizer, hidden_size, num_layers), **self.text},
            vision_config={"depth": 2, "num_heads": 2, **self.tower(tower_size, hidden_size)},
            tie_word_embeddings=True,
            **{key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()},
        )
        save_random_model(self.model, config, tokenizer, directory, seed)
        images, videos = self.processors(frame_size or 2 * self.unit)
        self.processor(images, tokenizer, videos, _CHAT_TEMPLATE).save_pretrained(directory)
        return directory


def _qwen3_processors(frame_size: int) -> tuple[Qwen2VLImageProcessor, Qwen3VLVideoProcessor]:
    """Processors that give square pictures this size, and frames at most this size, however many a clip has."""
    colors: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    videos = Qwen3VLVideoProcessor(
        size={"shortest_edge": 32 * 32, "longest_edge": 1024 * frame_size * frame_size},
        cap_pixels_per_frame=True,
        max_video_tokens=(frame_size // 32) ** 2,
        do_sample_frames=False,
        **colors,
    )
    return Qwen2VLImageProcessor(patch_size=16, size=frame_bounds(frame_size), **colors), videos


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
build_tiny_qwen3_vl = TinyVisionBuilder(
    config=Qwen3VLConfig,
    model=Qwen3VLForConditionalGeneration,
    processor=Qwen3VLProcessor,
    tower=lambda width, out: {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "out_hidden_size": out,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    },
    text={
        "head_dim": HEAD_DIM,
        "rope_parameters": {**MROPE, "mrope_section": [6, 5, 5], "mrope_interleaved": True},
    },
    processors=_qwen3_processors,
    unit=32,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyTextBuilder:
    """Builds models of one text-only family: its classes, and settings other than sizes."""

    config: Any
    model: Any
    text: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self, directory: Path, *, text: Sequence[str], seed: int = 0, hidden_size: int = 128, num_layers: int = 3
    ) -> Path:
        """Saves weights, tokenizer, chat template and generation config; arguments as for `TinyVisionBuilder`."""
        tokenizer = train_tokenizer(text, special_tokens=SPECIAL_TOKENS, media_tokens={})
        tokenizer.chat_template = _CHAT_TEMPLATE
        settings = {**_text_settings(tokenizer, hidden_size, num_layers), **self.text}
        config = self.config(**settings, tie_word_embeddings=True)
        save_random_model(self.model, config, tokenizer, directory, seed)
        tokenizer.save_pretrained(directory)
        return directory


build_tiny_qwen2 = TinyTextBuilder(config=Qwen2Config, model=Qwen2ForCausalLM)
build_tiny_qwen3 = TinyTextBuilder(config=Qwen3Config, model=Qwen3ForCausalLM, text={"head_dim": HEAD_DIM})


def _text_settings(tokenizer: Qwen2Tokenizer, hidden_size: int, num_layers: int) -> dict[str, Any]:
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return {**text_settings(tokenizer, hidden_size, num_layers), **ends}
