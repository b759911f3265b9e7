"""Qwen2.5-VL: text, image and video in, text out; the temporal positions of a clip follow its clock."""

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel, Qwen2_5_VLProcessor

from lightning_mmrl.models.families.qwen_media import VIDEO_SECONDS
from lightning_mmrl.models.families.qwen_vision import VisionBackbone, VisionEncoder, VisionFamily

FAMILY = VisionFamily(
    name="Qwen2.5-VL",
    config=Qwen2_5_VLConfig,
    processor=Qwen2_5_VLProcessor,
    model=Qwen2_5_VLForConditionalGeneration,
    body=Qwen2_5_VLModel,
    timing={"second_per_grid_ts": VIDEO_SECONDS},
)


class Qwen25VLEncoder(VisionEncoder):
    """The encoder of Qwen2.5-VL."""

    parts, family = FAMILY, FAMILY.name


class Qwen25VL(VisionBackbone):
    """A loaded Qwen2.5-VL."""

    parts = FAMILY
