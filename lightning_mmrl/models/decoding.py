"""Token-by-token decoding of N = B * G rows over B prompts that are computed, and kept, once."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.shared_prefix import layout_arguments, prompt_tiles
from lightning_mmrl.ops.tiled_attention import PartialAttention, Tile, attend, attend_block, merge
from lightning_mmrl.types.batches import PromptBatch

PREFILL_TOKENS = 16_384
"""Prompt tokens that enter the decoder together: bounds the memory of a prefill, changes nothing else."""


class Decoding(Protocol):
    """Rows that are decoded together; rows that ended can be left out."""

    @property
    def states(self) -> Float[Tensor, "R D"]:
        """The state that predicts the next token of each row."""
        ...

    def advance(self, tokens: Int[Tensor, " R"]) -> None:
        """Appends one token to each row."""
        ...

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Goes on with some of the rows, in the given order."""
        ...


def start_decoding(policy: Policy, prompts: PromptBatch, group_size: int) -> Decoding:
    """Prefills B prompts once each, for G rows per prompt in their order; call it without gradients."""
    kind = SharedDecoding if policy.sharing_refusal is None else StockDecoding
    return kind(policy, prompts, group_size)


class SharedDecoding:
    """Decoding on one packed row per step: no padding, and each prompt's keys are read once for all its rows."""

    def __init__(self, policy: Policy, prompts: PromptBatch, group_size: int) -> None:
        self._policy = policy
        lengths = prompts.prompt_mask.sum(-1).tolist()
        chunks = _chunks(lengths, PREFILL_TOKENS)
        states, buckets = zip(*(self._prefill(prompts.select(chunk), chunk) for chunk in chunks), strict=True)
        order = torch.tensor([row for chunk in chunks for row in chunk]).argsort().to(prompts.input_ids.device)
        self._cache = _SharedCache([bucket for some in buckets for bucket in some], len(lengths), group_size)
        self._position = prompts.next_position.repeat_interleave(group_size)
        self.states = torch.cat(states)[order].repeat_interleave(group_size, dim=0)

    def advance(self, tokens: Int[Tensor, " R"]) -> None:
        """One decoder pass over R tokens."""
        self._cache.begin_step(tokens.device)
        positions = self._position.expand(3, 1, -1)
        attention = layout_arguments(self._cache, tokens.device)
        self.states = self._policy.text_states(tokens[None], positions, attention=attention)[0]
        self._position = self._position + 1

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Drops the own keys of rows that ended, and prompts that no row needs."""
        self._cache.keep(rows)
        self._position, self.states = self._position[rows], self.states[rows]

    def _prefill(self, prompts: PromptBatch, rows: list[int]) -> tuple[Float[Tensor, "b D"], list["_Bucket"]]:
        mask = prompts.prompt_mask
        layout = _PrefillLayout(rows, mask.sum(-1).tolist(), mask.device)
        hidden = self._policy.text_states(
            prompts.input_ids[mask][None],
            prompts.position_ids[:, mask][:, None],
            features=self._policy.media.features(prompts),
            attention=layout_arguments(layout, mask.device),
        )
        return hidden[0, layout.last], layout.buckets


class _Bucket:
    """Keys and values of prompts of one length, layer by layer [b, K, P, d]."""

    def __init__(self, prompts: list[int], index: Int[Tensor, "b P"]) -> None:
        self.prompts = prompts
        self._index = index
        self._layers: list[tuple[Tensor, Tensor]] = []

    def append_layer(self, key: Float[Tensor, "T K d"], value: Float[Tensor, "T K d"]) -> None:
        """Takes the prompts' part of a layer's packed keys and values."""
        self._layers.append((self._block(key), self._block(value)))

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer."""
        return self._layers[layer]

    def keep(self, slots: list[int]) -> None:
        """Goes on with some of its prompts."""
        self.prompts = [self.prompts[slot] for slot in slots]
        self._layers = [(key[slots], value[slots]) for key, value in self._layers]

    def _block(self, tokens: Float[Tensor, "T K d"]) -> Float[Tensor, "b K P d"]:
        rows = tokens.index_select(0, self._index.flatten()).unflatten(0, self._index.shape)
        return rows.transpose(1, 2).contiguous()


class _PrefillLayout:
    """Causal attention within prompts that lie side by side; keeps their keys and values."""

    def __init__(self, prompts: list[int], lengths: list[int], device: torch.device) -> None:
        self._tiles, starts = prompt_tiles(lengths, device)
        self.last = torch.tensor([start + length - 1 for start, length in zip(starts, lengths, strict=True)]).to(device)
        self.buckets = []
        for length in sorted(set(lengths)):
            same = [slot for slot, other in enumerate(lengths) if other == length]
            index = torch.tensor([starts[slot] for slot in same])[:, None] + torch.arange(length)
            self.buckets.append(_Bucket([prompts[slot] for slot in same], index.to(device)))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Every prompt token against what precedes it."""
        for bucket in self.buckets:
            bucket.append_layer(key, value)
        return attend(query, key, value, self._tiles, scale)


class _SharedCache:
    """Prompt keys once per prompt, own keys once per row; a step's layout for the attention of R rows."""

    def __init__(self, buckets: list[_Bucket], num_prompts: int, group_size: int) -> None:
        self._buckets = buckets
        self._owner = [prompt for prompt in range(num_prompts) for _ in range(group_size)]
        self._own: dict[int, tuple[Tensor, Tensor]] = {}
        self._length = 0
        self._plans: list[tuple[_Bucket, Tile]] = []

    def begin_step(self, device: torch.device) -> None:
        """Makes room for one more token per row."""
        self._length += 1
        if not self._plans:
            self._plans = [(bucket, self._plan(bucket, device)) for bucket in self._buckets]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Float[Tensor, "R H d"]:
        """Each row's token against the row's own tokens and its prompt."""
        own_key, own_value = self._store(layer, key, value)
        own = attend_block(query.unsqueeze(2), own_key, own_value, causal=False, scale=scale)
        output, total = torch.empty_like(own.output.squeeze(2)), torch.empty_like(own.logsumexp.squeeze(2))
        for bucket, tile in self._plans:
            rows = query[tile.queries].transpose(1, 2)
            part = attend_block(rows, *bucket.layer(layer), causal=False, scale=scale)
            real = slice(None) if tile.filler is None else ~tile.filler
            index = tile.queries[real].flatten()
            output[index] = part.output.transpose(1, 2)[real].reshape(len(index), *query.shape[1:])
            total[index] = part.logsumexp.transpose(1, 2)[real].reshape(len(index), query.shape[1])
        own = PartialAttention(own.output.squeeze(2), own.logsumexp.squeeze(2))
        return merge(own, PartialAttention(output, total)).output.to(query.dtype)

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Goes on with some of the rows; a bucket goes with its last row and shrinks when half of it has ended."""
        self._owner = [self._owner[row] for row in rows.tolist()]
        self._own = {layer: (key[rows], value[rows]) for layer, (key, value) in self._own.items()}
        needed, self._plans, buckets = set(self._owner), [], []
        for bucket in self._buckets:
            slots = [slot for slot, prompt in enumerate(bucket.prompts) if prompt in needed]
            if slots and 2 * len(slots) <= len(bucket.prompts):
                bucket.keep(slots)
            if slots:
                buckets.append(bucket)
        self._buckets = buckets

    def _store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        step = self._length - 1
        if layer not in self._own or self._own[layer][0].shape[2] <= step:
            self._own[layer] = self._grown(layer, key), self._grown(layer, value, part=1)
        kept_key, kept_value = self._own[layer]
        kept_key[:, :, step], kept_value[:, :, step] = key, value
        return kept_key[:, :, : step + 1], kept_value[:, :, : step + 1]

    def _grown(self, layer: int, tokens: Float[Tensor, "R K d"], part: int = 0) -> Float[Tensor, "R K C d"]:
        room = tokens.new_empty(*tokens.shape[:2], max(32, 2 * (self._length - 1)), tokens.shape[2])
        if layer in self._own:
            old = self._own[layer][part]
            room[:, :, : old.shape[2]] = old
        return room

    def _plan(self, bucket: _Bucket, device: torch.device) -> Tile:
        """Which rows ask which prompt; a prompt whose rows have ended is asked by any row, and the answer dropped."""
        rows: dict[int, list[int]] = {prompt: [] for prompt in bucket.prompts}
        for row, prompt in enumerate(self._owner):
            if prompt in rows:
                rows[prompt].append(row)
        width = max(len(own) for own in rows.values())
        filled = [own + [own[-1] if own else 0] * (width - len(own)) for own in rows.values()]
        filler = [[slot >= len(own) for slot in range(width)] for own in rows.values()]
        return Tile(
            queries=torch.tensor(filled, device=device),
            keys=torch.zeros(len(filled), 0, dtype=torch.long, device=device),
            causal=False,
            filler=torch.tensor(filler, device=device) if any(map(any, filler)) else None,
        )


class StockDecoding:
    """Decoding through transformers' cache, for models that cannot share prompts exactly: prefill once, then copies."""

    def __init__(self, policy: Policy, prompts: PromptBatch, group_size: int) -> None:
        self._policy, self._cache = policy, DynamicCache(config=policy.text_config)
        mask = prompts.prompt_mask.long()
        states = policy.text_states(
            prompts.input_ids,
            prompts.position_ids,
            features=policy.media.features(prompts),
            in_prompt=prompts.prompt_mask,
            attention=self._attention(mask),
        )[:, -1]
        self._cache.batch_repeat_interleave(group_size)
        self._mask = mask.repeat_interleave(group_size, dim=0)
        self._position = prompts.next_position.repeat_interleave(group_size)
        self.states = states.repeat_interleave(group_size, dim=0)

    def advance(self, tokens: Int[Tensor, " R"]) -> None:
        """One decoder pass over R rows of one token."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        positions = self._position[None, :, None].expand(3, -1, -1)
        self.states = self._policy.text_states(tokens[:, None], positions, attention=self._attention(self._mask))[:, -1]
        self._position = self._position + 1

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Drops rows that ended from the cache."""
        self._cache.batch_select_indices(rows)
        self._mask, self._position, self.states = self._mask[rows], self._position[rows], self.states[rows]

    def _attention(self, mask: Int[Tensor, "R S"]) -> dict[str, Any]:
        return {"attention_mask": mask, "past_key_values": self._cache, "use_cache": True}


def _chunks(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Prompts of similar length together, at most `limit` tokens at once (or one prompt)."""
    chunks: list[list[int]] = []
    room = 0
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if not chunks or lengths[row] > room:
            chunks.append([])
            room = limit
        chunks[-1].append(row)
        room -= lengths[row]
    return chunks
