"""Llama and other models of its architecture, such as SmolLM2, without towers: text in, text out."""

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lightning_mmrl.models.families.family import Family, text_layout
from lightning_mmrl.models.families.text import TextBackbone, TextEncoder
from lightning_mmrl.models.tiny_qwen import TinyTextBuilder

FAMILY = Family(
    name="Llama",
    config=LlamaConfig,
    processor=AutoTokenizer,
    model=LlamaForCausalLM,
    layout=text_layout,
)


class LlamaEncoder(TextEncoder):
    """The encoder of Llama."""

    declaration = FAMILY


class Llama(TextBackbone):
    """A loaded Llama."""

    declaration = FAMILY


# The rotary embedding of Llama 3.2, for contexts 32 times as long as the original ones.
SCALED = {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 128, "rope_theta": 500000.0}
build_tiny_llama = TinyTextBuilder(
    config=LlamaConfig,
    model=LlamaForCausalLM,
    text={"rope_parameters": {**SCALED, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
)
