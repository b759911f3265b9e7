"""Writes a policy as a Hugging Face folder that plain transformers loads."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from lightning_mmrl.errors import StageError
from lightning_mmrl.models.finite import not_finite
from lightning_mmrl.models.parallelize import gathered_weights
from lightning_mmrl.models.policy import Policy

ADAPTER = "adapter"
"""Folder within a checkpoint that has the adapter alone, in peft's format."""


def export_policy(
    policy: Policy,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    directory: Path,
    *,
    started_from: str,
    writes: bool = True,
) -> None:
    """The checkpoint of a policy; an adapter is merged into its weights, and lies beside them under `ADAPTER`.

    Over several ranks all call it, and one of them writes. The weights themselves are taken to be finite.

    Args:
        policy: The policy; it stays as it is, its adapter unmerged.
        processor: As for `export_checkpoint`.
        directory: The folder.
        started_from: Hub id or folder of the model without the adapter.
        writes: Whether this rank writes.

    Raises:
        StageError: A weight is not finite once the adapter is merged into it.
    """
    model = cast(PreTrainedModel, policy.model)
    state = gathered_weights(model, keep=writes)
    if not writes:
        return
    if policy.adapter is None:
        export_checkpoint(model, processor, directory, state=state)
        return
    merged = policy.adapter.merged(state)
    wrong = not_finite(merged)
    if wrong:
        raise StageError(f"{wrong[0]} is not finite once the adapter is merged into it; lower the stage's optimizer.lr")
    export_checkpoint(model, processor, directory, state=merged)
    policy.adapter.save(directory / ADAPTER, state, base=started_from)


def export_checkpoint(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    directory: Path,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Weights as safetensors, configuration, generation config, processor, tokenizer and chat template.

    A text-only family has a tokenizer in the processor's place, and its folder no `processor_config.json`.

    Args:
        model: The model.
        processor: Its processor, or the tokenizer of a text-only family.
        directory: The folder.
        state: Weights to write in place of the model's own.
    """
    model.save_pretrained(directory, state_dict=None if state is None else dict(state))
    model.generation_config.save_pretrained(directory)  # type: ignore[union-attr]
    processor.save_pretrained(directory)
