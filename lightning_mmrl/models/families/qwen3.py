"""Qwen3 without towers: text in, text out; queries and keys are normalised."""

from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from lightning_mmrl.models.families.family import Family, text_layout
from lightning_mmrl.models.families.text import TextBackbone, TextEncoder

FAMILY = Family(
    name="Qwen3",
    config=Qwen3Config,
    processor=AutoTokenizer,
    model=Qwen3ForCausalLM,
    layout=text_layout,
)


class Qwen3Encoder(TextEncoder):
    """The encoder of Qwen3."""

    declaration = FAMILY


class Qwen3(TextBackbone):
    """A loaded Qwen3."""

    declaration = FAMILY
