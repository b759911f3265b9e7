"""Qwen2-VL: text, image and video in, text out; the temporal positions of a clip count its frame pairs."""

from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLModel, Qwen2VLProcessor

from lightning_mmrl.models.families.qwen_vision import VisionBackbone, VisionEncoder, VisionFamily

FAMILY = VisionFamily(
    name="Qwen2-VL",
    config=Qwen2VLConfig,
    processor=Qwen2VLProcessor,
    model=Qwen2VLForConditionalGeneration,
    body=Qwen2VLModel,
)


class Qwen2VLEncoder(VisionEncoder):
    """The encoder of Qwen2-VL."""

    parts, family = FAMILY, FAMILY.name


class Qwen2VL(VisionBackbone):
    """A loaded Qwen2-VL."""

    parts = FAMILY
