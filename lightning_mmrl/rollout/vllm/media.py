# pyright: reportMissingImports=false
# vllm is an extra that the type checker's environment does not have.
"""Turns a prompt's media into items of vLLM: tower inputs that are named and cut like the fields of vLLM's model."""

from typing import Any

import torch

from lightning_mmrl.models.families.media_keys import AUDIO_FEATURES, AUDIO_MASK
from lightning_mmrl.rollout.engine_inputs import EnginePrompt, medium_name


def media_items(prompt: EnginePrompt, processor: Any) -> tuple[Any, dict[str, list[str]]]:
    """Items of every kind, and their names, see `medium_name`; each item carries the positions of the whole prompt.

    Args:
        prompt: A prompt with at least one medium.
        processor: The multimodal processor of vLLM's model, which tells where one medium ends in each tensor.
    """
    from transformers import BatchFeature
    from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems

    from lightning_mmrl.rollout.vllm.worker import POSITIONS

    named = dict(prompt.tensors)
    if AUDIO_FEATURES in named:  # vLLM's models take sounds side by side [mel bins, frames]
        mask = named[AUDIO_MASK].bool()
        named["input_audio_features"] = named.pop(AUDIO_FEATURES).permute(0, 2, 1)[mask].T
        named["audio_feature_lengths"] = mask.sum(-1)
    tensors = BatchFeature(named)
    fields = processor._get_mm_fields_config(tensors, {})
    items = MultiModalKwargsItems.from_hf_inputs(tensors, fields)
    hashes = {
        kind: [
            medium_name(
                prompt.media_key, kind, number, {name: torch.as_tensor(field.data) for name, field in item.items()}
            )
            for number, item in enumerate(items[kind])
        ]
        for kind in items
    }
    (positions,) = MultiModalFieldConfig.batched("", keep_on_cpu=True).build_elems(POSITIONS, prompt.positions[None])
    for item in (item for kind in items for item in items[kind]):
        item[POSITIONS] = positions
    return items, hashes
