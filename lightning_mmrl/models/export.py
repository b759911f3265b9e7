"""Writes a policy as a Hugging Face folder that plain transformers loads."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin


def export_checkpoint(
    model: PreTrainedModel, processor: ProcessorMixin | PreTrainedTokenizerBase, directory: Path
) -> None:
    """Weights as safetensors, configuration, generation config, processor, tokenizer and chat template.

    A text-only family has a tokenizer in the processor's place, and its folder no `processor_config.json`.
    """
    model.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)  # type: ignore[union-attr]
    processor.save_pretrained(directory)
