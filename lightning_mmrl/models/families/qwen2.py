"""Qwen2 and Qwen2.5 without towers: text in, text out."""

from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from lightning_mmrl.models.families.family import Family, text_layout
from lightning_mmrl.models.families.text import TextBackbone, TextEncoder

FAMILY = Family(
    name="Qwen2",
    config=Qwen2Config,
    processor=AutoTokenizer,
    model=Qwen2ForCausalLM,
    layout=text_layout,
)


class Qwen2Encoder(TextEncoder):
    """The encoder of Qwen2 and Qwen2.5."""

    declaration = FAMILY


class Qwen2(TextBackbone):
    """A loaded Qwen2 or Qwen2.5."""

    declaration = FAMILY
