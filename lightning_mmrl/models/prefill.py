"""The one pass over prompts before their rows are decoded; it keeps the prompts' keys and values."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_mmrl.models.decode_cache import Bucket
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.shared_prefix import layout_arguments, prompt_tiles
from lightning_mmrl.ops.tiled_attention import attend
from lightning_mmrl.ops.transfer import on_device, to_device, true_places
from lightning_mmrl.types.batches import PromptBatch

PREFILL_TOKENS = 16_384
"""Prompt tokens that enter the decoder together; the number bounds the memory of a prefill and changes nothing else."""


def prefill(policy: Policy, prompts: PromptBatch) -> tuple[Float[Tensor, "B D"], list[Bucket]]:
    """Computes B prompts, packed without padding: the state after each, and their keys and values."""
    lengths, device = prompts.prompt_mask.sum(-1).tolist(), prompts.input_ids.device
    rows: list[int] = []
    states: list[Float[Tensor, "b D"]] = []
    buckets: list[Bucket] = []
    for chunk in _chunks(lengths, PREFILL_TOKENS):
        chosen, own = prompts.select(chunk), [lengths[row] for row in chunk]
        layout = _PrefillLayout(chunk, own, device)
        places = true_places(chosen.prompt_mask, sum(own))
        hidden = policy.text_states(
            chosen.input_ids.flatten()[None, places],
            chosen.position_ids.flatten(1)[:, None, places],
            features=policy.media.features(chosen),
            attention=layout_arguments(layout, device),
        )
        states.append(hidden[0, layout.last])
        buckets += layout.buckets
        rows += chunk
    order = on_device(sorted(range(len(rows)), key=rows.__getitem__), device)
    return torch.cat(states)[order], buckets


class _PrefillLayout:
    """Causal attention within prompts that lie side by side in one row; keeps their keys and values."""

    def __init__(self, prompts: list[int], lengths: list[int], device: torch.device) -> None:
        self._tiles, starts = prompt_tiles(lengths, device)
        last = torch.tensor([start + length - 1 for start, length in zip(starts, lengths, strict=True)])
        groups, indices, padded = _similar(lengths), [last], []
        for slots in groups:
            start, length = torch.tensor([(starts[slot], lengths[slot]) for slot in slots]).unsqueeze(-1).unbind(1)
            steps = torch.arange(int(length.max()))
            indices.append(start + steps.minimum(length - 1))
            padded.append(steps >= length)
        self.last, *indices = to_device(indices, device)
        self.buckets = [
            Bucket([prompts[slot] for slot in slots], index, padding)
            for slots, index, padding in zip(groups, indices, padded, strict=True)
        ]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of every prompt token to itself and to the tokens before it."""
        for bucket in self.buckets:
            bucket.append_layer(key, value)
        return attend(query, key, value, self._tiles, scale)


def _chunks(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Groups prompts of similar length into chunks of at most `limit` tokens, or of one longer prompt."""
    chunks: list[list[int]] = []
    room = 0
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if not chunks or lengths[row] > room:
            chunks.append([])
            room = limit
        chunks[-1].append(row)
        room -= lengths[row]
    return chunks


def _similar(lengths: Sequence[int]) -> list[list[int]]:
    """Groups prompts, with one attention call for each group.

    None is padded by more than a third of its length, except that prompts of up to 64 tokens share a group.
    """
    groups: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if groups and (4 * lengths[row] >= 3 * longest or longest <= 64):
            groups[-1].append(row)
        else:
            groups.append([row])
            longest = lengths[row]
    return [sorted(group) for group in groups]
