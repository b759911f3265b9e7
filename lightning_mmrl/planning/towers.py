"""The media towers of each family, and the sizes that transformers takes where a config.json leaves them out."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lightning_mmrl.planning.stacks import Linear, Stack, gated

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
"""Values that a config.json may leave out and that the formulas read, by model_type and part."""


def _vision_2_5(vision: Mapping[str, Any], *, split: bool) -> Stack:
    """Returns the tower of Qwen2.5-VL or of Qwen2.5-Omni, which splits queries, keys and values (`split`)."""
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    merger = _merger("merger.mlp.0", "merger.mlp.2", width * _merged(vision), vision["out_hidden_size"])
    return _tower(
        vision,
        width=width,
        inner=inner,
        linears=(*_attention(width, split), *gated(width, inner, bias=True)),
        rms_norms=True,
        inner_copies=3,
        rest=_patch_values(vision) * width + width + sum(linear.parameters for linear in merger),
        projector=merger,
        projector_norms=width,
    )


def _vision_2(vision: Mapping[str, Any]) -> Stack:
    """The tower of Qwen2-VL; `hidden_size` is the decoder's width there."""
    width = vision["embed_dim"]
    inner = int(width * vision["mlp_ratio"])
    merger = _merger("merger.mlp.0", "merger.mlp.2", width * _merged(vision), vision["hidden_size"])
    return _tower(
        vision,
        width=width,
        inner=inner,
        linears=(*_attention(width, split=False), *_plain("mlp.fc1", "mlp.fc2", width, inner)),
        rms_norms=False,
        inner_copies=2,
        rest=_patch_values(vision) * width + 2 * width + sum(linear.parameters for linear in merger),
        projector=merger,
        projector_norms=2 * width,
    )


def _vision_3(vision: Mapping[str, Any]) -> Stack:
    """The tower of Qwen3-VL: learned positions, and a further merger for each inner layer that feeds the decoder."""
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    merged = width * _merged(vision)
    deep = len(vision["deepstack_visual_indexes"])
    names = ("merger", *(f"deepstack_merger_list.{index}" for index in range(deep)))
    mergers = tuple(
        linear
        for name in names
        for linear in _merger(f"{name}.linear_fc1", f"{name}.linear_fc2", merged, vision["out_hidden_size"])
    )
    patches = (_patch_values(vision) + 1 + vision["num_position_embeddings"]) * width
    return _tower(
        vision,
        width=width,
        inner=inner,
        linears=(*_attention(width, split=False), *_plain("mlp.linear_fc1", "mlp.linear_fc2", width, inner)),
        rms_norms=False,
        inner_copies=1,
        rest=patches + 2 * width + 2 * merged * deep + sum(linear.parameters for linear in mergers),
        projector=mergers,
        projector_norms=2 * width + 2 * merged * deep,
        sizes_clips=True,
    )


def _audio(audio: Mapping[str, Any]) -> Stack:
    """Returns the sound tower of Qwen2.5-Omni: Whisper's encoder, in which keys have no bias."""
    width, inner, bins = audio["d_model"], audio["encoder_ffn_dim"], audio["num_mel_bins"]
    attention = tuple(
        Linear(name=f"self_attn.{name}", kind="attention", reads=reads, inputs=width, outputs=width, bias=bias)
        for name, reads, bias in (
            ("q_proj", "first", True),
            ("k_proj", "first", False),
            ("v_proj", "first", True),
            ("out_proj", "attention", True),
        )
    )
    projector = Linear(name="audio_tower.proj", kind="projector", reads="", inputs=width, outputs=audio["output_dim"])
    convolutions = (3 * bins + 1) * width + (3 * width + 1) * width
    return Stack(
        path="audio_tower.layers",
        depth=audio["encoder_layers"],
        width=width,
        inner=inner,
        heads=audio["encoder_attention_heads"],
        queries=width,
        keys=width,
        linears=(*attention, *_plain("fc1", "fc2", width, inner)),
        norm_parameters=4 * width,
        rms_norms=False,
        inner_copies=1,
        rest=convolutions + 2 * audio["output_dim"] + 2 * width + projector.parameters,
        projector=(projector,),
        rows_per_token=2,
        input_values=2 * bins,
        input_products=3 * (2 * bins + width) * width,
    )


TOWERS: dict[str, dict[str, Callable[[Mapping[str, Any]], Stack]]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen2_vl": {"vision": _vision_2},
    "qwen2_5_vl": {"vision": partial(_vision_2_5, split=False)},
    "qwen3_vl": {"vision": _vision_3},
    "qwen2_5_omni_thinker": {"vision": partial(_vision_2_5, split=True), "audio": _audio},
}
"""By `model_type`, the towers of each family of this package; text families of other packages need no entry."""
TIED_BY_TEXT = ("qwen2_vl", "qwen2_5_vl")
"""Families whose text settings may hold `tie_word_embeddings`, because transformers wrote it there before version 5."""


def _tower(vision: Mapping[str, Any], *, width: int, rms_norms: bool, **sizes: Any) -> Stack:
    return Stack(
        path="visual.blocks",
        depth=vision["depth"],
        width=width,
        heads=vision["num_heads"],
        queries=width,
        keys=width,
        norm_parameters=(2 if rms_norms else 4) * width,
        rms_norms=rms_norms,
        rows_per_token=_merged(vision),
        input_values=_patch_values(vision),
        input_products=_patch_values(vision) * width,
        input_bytes=1,
        square=vision["patch_size"] * vision["spatial_merge_size"],
        **sizes,
    )


def _attention(width: int, split: bool) -> tuple[Linear, ...]:
    names = [(name, width) for name in ("q", "k", "v")] if split else [("qkv", 3 * width)]
    return tuple(
        Linear(
            name=f"attn.{name}",
            kind="attention",
            reads="attention" if name == "proj" else "first",
            inputs=width,
            outputs=outputs,
        )
        for name, outputs in [*names, ("proj", width)]
    )


def _plain(first: str, second: str, width: int, inner: int) -> tuple[Linear, ...]:
    return (
        Linear(name=first, kind="mlp", reads="second", inputs=width, outputs=inner),
        Linear(name=second, kind="mlp", reads="inner", inputs=inner, outputs=width),
    )


def _merger(first: str, second: str, width: int, out: int) -> tuple[Linear, Linear]:
    return (
        Linear(name=f"visual.{first}", kind="projector", reads="", inputs=width, outputs=width),
        Linear(name=f"visual.{second}", kind="projector", reads="", inputs=width, outputs=out),
    )


def _merged(vision: Mapping[str, Any]) -> int:
    return vision["spatial_merge_size"] ** 2


def _patch_values(vision: Mapping[str, Any]) -> int:
    return vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2
