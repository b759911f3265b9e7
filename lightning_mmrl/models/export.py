"""Writes a policy as a Hugging Face folder that plain transformers loads."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from lightning_mmrl.errors import StageError
from lightning_mmrl.models.finite import not_finite
from lightning_mmrl.models.parallelize import gathered_weights
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.protocols.tensors import PromptEncoder

ADAPTER = "adapter"
"""Folder within a checkpoint that has the adapter alone, in peft's format."""


def export_policy(
    policy: Policy,
    encoder: PromptEncoder,
    directory: Path,
    *,
    started_from: str,
    ranks: Ranks = ALONE,
) -> None:
    """Writes the checkpoint of a policy; an adapter is merged into the weights, and also saved alone under `ADAPTER`.

    Weights that were kept in a wider type are rounded to the type that they were loaded in.

    With several ranks all call it, and the first one writes. The weights of the policy must be finite.

    Args:
        policy: The policy; it stays as it is, its adapter unmerged.
        encoder: The encoder of its prompts.
        directory: The folder.
        started_from: Hub id or folder of the model without the adapter.
        ranks: The processes that hold the weights.

    Raises:
        StageError: A weight is not finite once the adapter is merged into it; raised on all ranks.
    """
    model = cast(PreTrainedModel, policy.model)
    writes = ranks.rank == 0
    state = policy.stored(gathered_weights(model, keep=writes))
    adapter = policy.adapter
    merged = state if adapter is None else dict(adapter.merging(state))
    # Only the first rank has the weights, but all ranks must raise if one is wrong.
    wrong = [] if adapter is None else [name for part in ranks.gather(not_finite(merged)) for name in part]
    if wrong:
        raise StageError(f"{wrong[0]} is not finite once the adapter is merged into it; lower the stage's optimizer.lr")
    if writes:
        export_checkpoint(model, encoder, directory, state=merged)
    if writes and adapter is not None:
        adapter.save(directory / ADAPTER, state, base=started_from)


def export_checkpoint(
    model: PreTrainedModel,
    encoder: PromptEncoder,
    directory: Path,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes weights as safetensors, configuration, generation config, processor, tokenizer and chat template.

    The folder has the layout of the family's released checkpoints: engines such as vLLM know no other. Its generation
    config names the ids that ended completions in training. A text-only family has a tokenizer in the processor's
    place, and its folder has no `processor_config.json`.

    Args:
        model: The model.
        encoder: The encoder of its prompts.
        directory: The folder.
        state: Weights to write in place of the model's own.
    """
    prefix = encoder.engine_prefix
    weights = {f"{prefix}{name}": tensor for name, tensor in (model.state_dict() if state is None else state).items()}
    kind = next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point())
    model.config.dtype = str(kind).removeprefix("torch.")
    whole = encoder.released(model)
    whole.save_pretrained(directory, state_dict=weights)
    whole.config.dtype = str(kind).removeprefix("torch.")  # transformers noted the type of the weights in memory
    whole.config.save_pretrained(directory)
    generation = copy.deepcopy(model.generation_config) or GenerationConfig()
    generation.eos_token_id = list(encoder.eos_token_ids)
    generation.save_pretrained(directory)
    encoder.processor.save_pretrained(directory)
