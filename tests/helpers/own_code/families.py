"""A text family of a user's own, in one file: declaration, encoder, backbone, and a builder of a tiny model."""

from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

from lightning_mmrl.models.families.family import Family, text_layout
from lightning_mmrl.models.families.text import TextBackbone, TextEncoder
from lightning_mmrl.models.tiny_qwen import TinyTextBuilder

FAMILY = Family(
    name="Mistral", config=MistralConfig, processor=AutoTokenizer, model=MistralForCausalLM, layout=text_layout
)


class MistralEncoder(TextEncoder):
    """The encoder of Mistral."""

    declaration = FAMILY


class Mistral(TextBackbone):
    """A loaded Mistral without sliding windows."""

    declaration = FAMILY


build_tiny_mistral = TinyTextBuilder(config=MistralConfig, model=MistralForCausalLM, text={"sliding_window": None})
