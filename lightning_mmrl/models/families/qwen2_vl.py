"""Qwen2-VL: text, image and video in, text out; the temporal positions of a clip count its frame pairs."""

from collections.abc import Mapping
from typing import ClassVar

from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from lightning_mmrl.models.families.backbone import LayerKinds
from lightning_mmrl.models.families.family import Family
from lightning_mmrl.models.families.qwen_vision import (
    VISION_KEYS,
    QwenVisionBackbone,
    QwenVisionEncoder,
    patch_layout,
)

FAMILY = Family(
    name="Qwen2-VL",
    config=Qwen2VLConfig,
    processor=Qwen2VLProcessor,
    model=Qwen2VLForConditionalGeneration,
    layout=patch_layout,
    medium_keys=VISION_KEYS,
)


class Qwen2VLEncoder(QwenVisionEncoder):
    """The encoder of Qwen2-VL."""

    declaration = FAMILY


class Qwen2VL(QwenVisionBackbone):
    """A loaded Qwen2-VL."""

    declaration = FAMILY
    tower_layers: ClassVar[Mapping[str, LayerKinds]] = {
        "vision": {
            "attention": ("attn.qkv", "attn.proj"),
            "mlp": ("mlp.fc1", "mlp.fc2"),
            "projector": ("merger.mlp",),
        }
    }
