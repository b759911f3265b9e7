"""Qwen2-VL: text, image and video in, text out; the temporal positions of a clip count its frame pairs."""

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from lightning_mmrl.models.families.backbone import LayerKinds
from lightning_mmrl.models.families.family import Family
from lightning_mmrl.models.families.qwen_vision import (
    VISION_KEYS,
    QwenVisionBackbone,
    QwenVisionEncoder,
)
from lightning_mmrl.models.positions import MediaLayout
from lightning_mmrl.settings.model import PositionRule


def layout(config: Any, rule: PositionRule) -> MediaLayout:
    """One position per frame pair, whatever its duration."""
    return MediaLayout(rule=rule, merge_size=config.vision_config.spatial_merge_size)


FAMILY = Family(
    name="Qwen2-VL",
    config=Qwen2VLConfig,
    processor=Qwen2VLProcessor,
    model=Qwen2VLForConditionalGeneration,
    layout=layout,
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
