"""Sizes of the released models by hub id, as their config.json files say, so that a plan needs no download.

Keys that a config.json leaves out have the defaults of transformers; tests hold both against transformers itself and
against the published numbers of parameters.
"""

from collections.abc import Mapping
from typing import Any

_VISION: Mapping[str, Any] = {
    "depth": 32,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_TEXT: Mapping[str, Any] = {"num_key_value_heads": 32}

DEFAULTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "qwen2": {"text": _TEXT},
    "qwen3": {"text": {**_TEXT, "head_dim": 128, "attention_bias": False}},
    "qwen2_vl": {
        "text": {"num_key_value_heads": 8},
        "vision": {**_VISION, "embed_dim": 1280, "mlp_ratio": 4, "hidden_size": 3584},
    },
    "qwen2_5_vl": {
        "text": {"num_key_value_heads": 8},
        "vision": {**_VISION, "hidden_size": 3584, "intermediate_size": 3420, "out_hidden_size": 3584},
    },
    "qwen3_vl": {
        "text": {**_TEXT, "head_dim": 128, "attention_bias": False},
        "vision": {
            **_VISION,
            "depth": 27,
            "patch_size": 16,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "out_hidden_size": 3584,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": (8, 16, 24),
        },
    },
    "qwen2_5_omni_thinker": {
        "text": {"num_key_value_heads": 4},
        "vision": {**_VISION, "hidden_size": 3584, "intermediate_size": 3420, "out_hidden_size": 3584},
        "audio": {
            "num_mel_bins": 128,
            "encoder_layers": 32,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "d_model": 1280,
            "output_dim": 3584,
        },
    },
}
"""By model_type and part, what the formulas of `config.shapes` read and a config.json may leave out."""


def _text(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
    }


_QWEN2 = {
    "0.5B": _text(896, 24, 14, 2, 4864, 151936),
    "1.5B": _text(1536, 28, 12, 2, 8960, 151936),
    "3B": _text(2048, 36, 16, 2, 11008, 151936),
    "7B": _text(3584, 28, 28, 4, 18944, 152064),
}
_QWEN3 = {
    "1.7B": _text(2048, 28, 16, 8, 6144, 151936),
    "4B": _text(2560, 36, 32, 8, 9728, 151936),
    "8B": _text(4096, 36, 32, 8, 12288, 151936),
}
_SMALL = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}


def _plain(kind: str, sizes: Mapping[str, int], tied: bool) -> dict[str, Any]:
    return {"model_type": kind, **sizes, "tie_word_embeddings": tied}


def _seeing(kind: str, sizes: Mapping[str, int], tied: bool, **vision: Any) -> dict[str, Any]:
    vision = {"out_hidden_size": sizes["hidden_size"], **vision}
    return {"model_type": kind, "text_config": sizes, "tie_word_embeddings": tied, "vision_config": vision}


RELEASED: Mapping[str, Mapping[str, Any]] = {
    "Qwen/Qwen2.5-Omni-3B": {
        **_seeing("qwen2_5_omni_thinker", _QWEN2["3B"], tied=False, hidden_size=1280),
        "audio_config": {"output_dim": 2048},
    },
    "Qwen/Qwen2.5-Omni-7B": {
        **_seeing("qwen2_5_omni_thinker", _QWEN2["7B"], tied=False, hidden_size=1280),
        "audio_config": {"output_dim": 3584},
    },
    "Qwen/Qwen2.5-VL-3B-Instruct": _seeing("qwen2_5_vl", _QWEN2["3B"], tied=True, hidden_size=1280),
    "Qwen/Qwen2.5-VL-7B-Instruct": _seeing("qwen2_5_vl", _QWEN2["7B"], tied=False, hidden_size=1280),
    "Qwen/Qwen2-VL-2B-Instruct": {
        **_seeing("qwen2_vl", _QWEN2["1.5B"], tied=True),
        "vision_config": {"hidden_size": 1536},
    },
    "Qwen/Qwen2.5-0.5B-Instruct": _plain("qwen2", _QWEN2["0.5B"], tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": _plain("qwen2", _QWEN2["1.5B"], tied=True),
    "Qwen/Qwen2.5-3B-Instruct": _plain("qwen2", _QWEN2["3B"], tied=True),
    "Qwen/Qwen2.5-7B-Instruct": _plain("qwen2", _QWEN2["7B"], tied=False),
    "Qwen/Qwen3-1.7B": _plain("qwen3", _QWEN3["1.7B"], tied=True),
    "Qwen/Qwen3-4B": _plain("qwen3", _QWEN3["4B"], tied=True),
    "Qwen/Qwen3-8B": _plain("qwen3", _QWEN3["8B"], tied=False),
    "Qwen/Qwen3-VL-2B-Instruct": _seeing("qwen3_vl", _QWEN3["1.7B"], tied=True, **_SMALL),
    "Qwen/Qwen3-VL-4B-Instruct": _seeing("qwen3_vl", _QWEN3["4B"], tied=True, **_SMALL),
    "Qwen/Qwen3-VL-8B-Instruct": _seeing("qwen3_vl", _QWEN3["8B"], tied=False),
}
"""A config.json in short for every checkpoint of configs/model."""
