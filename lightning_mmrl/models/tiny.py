"""A tiny, randomly initialised Qwen2.5-Omni thinker with its real processor, built in code and saved as a HF folder.

Architecture, processor classes and chat template are the same as in Qwen2.5-Omni; only the sizes are small and
the tokenizer is trained on a few sentences. Nothing is downloaded.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    WhisperFeatureExtractor,
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|vision_bos|>",
    "<|vision_eos|>",
    "<|vision_pad|>",
    "<|IMAGE|>",
    "<|VIDEO|>",
)
TAG_TOKENS = ("<think>", "</think>", "<answer>", "</answer>")
MEDIA_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
HEAD_DIM = 32
MROPE = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
HEAD_MULTIPLE = 32
"""The vocabulary size (rows of the LM head) is a multiple of this, as vLLM's CPU kernels require."""

# The chat template of Qwen2.5-Omni.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif content['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif content['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tiny_omni(
    directory: Path,
    *,
    text: Sequence[str],
    seed: int = 0,
    hidden_size: int = 128,
    num_layers: int = 3,
    tower_size: int = 64,
    frame_size: int = 56,
    max_audio_s: int = 2,
) -> Path:
    """Builds the model and saves weights, processor, chat template and generation config to `directory`.

    Args:
        directory: Where the Hugging Face folder goes; it is created.
        text: Sentences the tokenizer learns its merges from; any other text still encodes, byte by byte.
        seed: Seed of the random weights.
        hidden_size: Width of the text model; a multiple of 32, the head dimension.
        num_layers: Decoder layers of the text model.
        tower_size: Width of the vision and audio towers.
        frame_size: Height and width in pixels that square pictures and frames are resized to; a multiple of 28.
            Pictures that are not square keep their aspect ratio and get about `frame_size` x `frame_size` pixels.
        max_audio_s: Longest sound in seconds the feature extractor accepts.
    """
    tokenizer = train_tokenizer(text)
    images, videos = vision_processors(frame_size)
    processor = Qwen2_5OmniProcessor(
        image_processor=images,
        video_processor=videos,
        feature_extractor=WhisperFeatureExtractor(feature_size=128, chunk_length=max_audio_s),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    config = _config(tokenizer, hidden_size=hidden_size, num_layers=num_layers, tower_size=tower_size)
    save_random_model(Qwen2_5OmniThinkerForConditionalGeneration, config, tokenizer, directory, seed)
    processor.save_pretrained(directory)
    return directory


def train_tokenizer(
    text: Sequence[str],
    vocab_size: int = 600,
    *,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    media_tokens: Mapping[str, str] = MappingProxyType(MEDIA_TOKENS),
) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer that learned its merges from `text`, with one token per special token and tag.

    Every digit is a token of its own, as in the released tokenizers.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    # A word at the start of a line and after a space are different byte-level tokens: learn both.
    bpe.train_from_iterator([line for sentence in text for line in (sentence, " " + sentence)], trainer)
    model: Any = bpe.model
    state = json.loads(model.__getstate__())
    merges: Any = [tuple(pair) for pair in state["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=merges,
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=dict(media_tokens),
        model_max_length=4096,
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(special_tokens)}, replace_extra_special_tokens=False
    )
    tokenizer.add_tokens(list(TAG_TOKENS))
    return tokenizer


def text_settings(tokenizer: Qwen2Tokenizer, hidden_size: int, num_layers: int) -> dict[str, Any]:
    """The sizes of a text model for a tokenizer's vocabulary."""
    heads = hidden_size // HEAD_DIM
    return {
        "vocab_size": -(-len(tokenizer) // HEAD_MULTIPLE) * HEAD_MULTIPLE,
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "max_position_embeddings": 4096,
    }


def save_random_model(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    tokenizer: Qwen2Tokenizer,
    directory: Path,
    seed: int,
) -> None:
    """Draws a model's weights from a seed and saves them with the generation config of its tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, cast(int, tokenizer.convert_tokens_to_ids("<|endoftext|>"))],
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
    )
    model.save_pretrained(directory)


def vision_processors(frame_size: int) -> tuple[Qwen2VLImageProcessor, Qwen2VLVideoProcessor]:
    """The image and the video processor; both resize square frames to `frame_size` x `frame_size` pixels."""
    return (
        Qwen2VLImageProcessor(size=frame_bounds(frame_size)),
        Qwen2VLVideoProcessor(size=frame_bounds(frame_size), cap_pixels_per_frame=False),
    )


def frame_bounds(frame_size: int) -> dict[str, int]:
    """Pixel-count bounds that make a processor resize square pictures to `frame_size` x `frame_size`."""
    # One pixel of slack: with equal bounds, rounding in the processor's resizing makes some sizes a patch smaller.
    return {"shortest_edge": frame_size * frame_size - 1, "longest_edge": frame_size * frame_size + 1}


def _config(
    tokenizer: Qwen2Tokenizer, *, hidden_size: int, num_layers: int, tower_size: int
) -> Qwen2_5OmniThinkerConfig:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = text_settings(tokenizer, hidden_size, num_layers)
    settings: dict[str, Any] = dict(
        text_config={**text, "rope_parameters": dict(MROPE), "tie_word_embeddings": False},
        vision_config={
            "depth": 2,
            "hidden_size": tower_size,
            "intermediate_size": 2 * tower_size,
            "num_heads": 2,
            "out_hidden_size": hidden_size,
            "fullatt_block_indexes": [0, 1],
        },
        audio_config={
            "encoder_layers": 2,
            "d_model": tower_size,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 2 * tower_size,
            "output_dim": hidden_size,
        },
        audio_token_index=ids["<|AUDIO|>"],
        image_token_index=ids["<|IMAGE|>"],
        video_token_index=ids["<|VIDEO|>"],
        audio_start_token_id=ids["<|audio_bos|>"],
        audio_end_token_id=ids["<|audio_eos|>"],
        vision_start_token_id=ids["<|vision_bos|>"],
        vision_end_token_id=ids["<|vision_eos|>"],
        user_token_id=tokenizer.encode("user")[0],
        tie_word_embeddings=False,
    )
    return Qwen2_5OmniThinkerConfig(**settings)
