"""Qwen2.5-VL: text, image and video in, text out; the temporal positions of a clip follow its clock."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from lightning_mmrl.models.families.backbone import LayerKinds
from lightning_mmrl.models.families.family import Family
from lightning_mmrl.models.families.qwen_vision import (
    VISION_KEYS,
    QwenVisionBackbone,
    QwenVisionEncoder,
)
from lightning_mmrl.models.positions import MediaLayout, interval_clock
from lightning_mmrl.settings.model import PositionRule


def layout(config: Any, rule: PositionRule) -> MediaLayout:
    """As many positions a second as the checkpoint says."""
    vision = config.vision_config
    clock = partial(interval_clock, per_second=vision.tokens_per_second)
    return MediaLayout(rule=rule, merge_size=vision.spatial_merge_size, clock=clock)


FAMILY = Family(
    name="Qwen2.5-VL",
    config=Qwen2_5_VLConfig,
    processor=Qwen2_5_VLProcessor,
    model=Qwen2_5_VLForConditionalGeneration,
    layout=layout,
    medium_keys=VISION_KEYS,
)


class Qwen25VLEncoder(QwenVisionEncoder):
    """The encoder of Qwen2.5-VL."""

    declaration = FAMILY


class Qwen25VL(QwenVisionBackbone):
    """A loaded Qwen2.5-VL."""

    declaration = FAMILY
    tower_layers: ClassVar[Mapping[str, LayerKinds]] = {
        "vision": {
            "attention": ("attn.qkv", "attn.proj"),
            "mlp": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
            "projector": ("merger.mlp",),
        }
    }
