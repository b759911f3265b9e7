"""Rows `[prompts | completions]` in which G completions share one prompt, with unpatched transformers.

Media, prompt and completions of several groups lie side by side in one row without padding: a group takes
P + sum_j C_j tokens instead of G * (P + C) (arXiv:2506.05433). Each completion continues at its prompt's next position
and attends to its prompt and to itself, nothing else (`ops.tiled_attention`). The states are therefore the same as in
separate rows, and gradients into the prompt add up over the group.

The attention is registered with transformers under `ATTENTION` and used by the text model only; towers keep their own.
A forward pass without a layout is the stock one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import itemgetter
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lightning_mmrl.ops.tiled_attention import Tile, attend, autocast_dtype
from lightning_mmrl.ops.transfer import on_host, to_device, true_places
from lightning_mmrl.types.batches import ScoringBatch

TENSORS = ("queries", "keys", "filler", "slots", "tokens")
"""The fields of a tile that lie on the device."""

Block = TypeVar("Block", bound=tuple[int, ...])

ATTENTION = "lightning_mmrl_shared_prefix"
LAYOUT = "shared_prefix"
"""Keyword under which a layout travels through a text model to its attention."""

SMALLEST_GAIN = 1.1
"""A group shares its prompt if copies would take a tenth more tokens; a smaller gain is lost to extra calls."""


class AttentionLayout(Protocol):
    """Computes the attention of a packed row; every decoder layer calls it once."""

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "T H d"],
        key: Float[Tensor, "T K d"],
        value: Float[Tensor, "T K d"],
        scale: float,
    ) -> Float[Tensor, "T H d"]: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TreeLayout:
    """Prompts and completions of a scoring pass."""

    tiles: tuple[Tile, ...]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Float[Tensor, "T H d"]:
        """Each token attends to its own run and, in a completion, to its prompt."""
        return attend(query, key, value, self.tiles, scale)


def attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The attention function that transformers calls: by layout where there is one, stock otherwise.

    Under autocast, rotated queries and keys are float32 and values are not. Autocast casts all three for torch's own
    attention, and a layout takes them cast alike: CUDA has no fast kernel for float32.
    """
    layout: AttentionLayout | None = kwargs.pop(LAYOUT, None)
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    dtype = autocast_dtype(query.device) or query.dtype
    rows = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    return layout.attend(module.layer_idx, *rows, scale)[None], None  # type: ignore[arg-type]


AttentionInterface.register(ATTENTION, attention_forward)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def layout_arguments(layout: AttentionLayout, device: torch.device) -> dict[str, Any]:
    """Arguments that pass a layout to a text model. An empty 4-D mask keeps the model from building another."""
    return {"attention_mask": torch.empty(1, 1, 0, 0, device=device), "use_cache": False, LAYOUT: layout}


def sharing_refusal(text_model: nn.Module) -> str | None:
    """The reason why sharing a prompt would change results in this text model, or None if it would not."""
    config: Any = text_model.config
    types = sorted(set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"})
    if types:
        return f"layers of type {', '.join(types)} look at order in the row, not at positions"
    if getattr(config, "num_experts", 0) or getattr(config, "num_local_experts", 0):
        return "mixture-of-experts layers balance by counts of tokens, which sharing changes"
    rates = [config.attention_dropout] if getattr(config, "attention_dropout", 0.0) else []
    rates += [module.p for module in text_model.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    if rates:
        return f"dropout of {max(rates)} would draw one noise for all completions of a prompt"
    return None


def sharing_pays(prompt_length: int, lengths: Sequence[int]) -> bool:
    """True if one copy of the prompt for all completions saves enough tokens, compared with a copy for each.

    The ratio is rho = (n * P + sum C) / (P + sum C) for n completions that are not left out.

    >>> sharing_pays(3000, [200] * 8), sharing_pays(3000, [200]), sharing_pays(10, [500] * 8)
    (True, False, False)
    """
    tail = sum(lengths)
    copies = sum(length > 0 for length in lengths)
    return copies * prompt_length + tail >= SMALLEST_GAIN * (prompt_length + tail)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedRow:
    """One row of T tokens that holds B groups, and where its tokens come from.

    The sources are all prompt tokens and then all completion tokens, without padding and without left-out rows. The
    first `num_prompt_tokens` are the prompts', and the row has `copies` of each prompt. `source` gives for each token
    of the row the index of its source; None: the row equals its sources, since every group shares its prompt.
    `predicts` gives for each scored completion token the row's token whose state predicts it.
    """

    layout: TreeLayout
    sources: Int[Tensor, " S"]
    num_prompt_tokens: int
    copies: tuple[int, ...]
    position_ids: Int[Tensor, "3 T"]
    source: Int[Tensor, " T"] | None
    predicts: Int[Tensor, " n"]


def pack(batch: ScoringBatch) -> PackedRow:
    """Lays out a scoring batch in a row. Completions whose mask is False throughout take no token.

    The host waits for the device once, to read the lengths.
    """
    prompts, present = batch.prompts, present_tokens(batch.completion_mask)
    device, groups = present.device, (-1, batch.group_size)
    counts = (prompts.prompt_mask.sum(-1), present.sum(-1).unflatten(0, groups), batch.completion_mask.sum())
    *widths, num_scored = on_host(counts)
    prompt_lengths, lengths = (tensor.tolist() for tensor in widths)
    plan = _Plan(prompt_lengths, lengths)
    in_prompts = true_places(prompts.prompt_mask, sum(prompt_lengths))
    in_completions = true_places(present, sum(map(sum, lengths)))

    owner = torch.arange(len(present), device=device) // batch.group_size
    steps = torch.arange(present.shape[1], device=device)
    tail = (prompts.next_position[owner, None] + steps).flatten().index_select(0, in_completions).expand(3, -1)
    position_ids = torch.cat([prompts.position_ids.flatten(1).index_select(1, in_prompts), tail], dim=1)
    sources = [prompts.input_ids.flatten()[in_prompts], batch.completion_ids.flatten()[in_completions]]
    tiles, (before, *source) = _on_device(
        plan.tiles(), [torch.cat(plan.before), *([] if plan.source is None else [torch.cat(plan.source)])], device
    )
    scored = true_places(batch.completion_mask.flatten()[in_completions], int(num_scored))
    return PackedRow(
        layout=TreeLayout(tiles=tiles),
        sources=torch.cat(sources),
        num_prompt_tokens=sum(prompt_lengths),
        copies=tuple(plan.copies),
        position_ids=position_ids.index_select(1, source[0]) if source else position_ids,
        source=source[0] if source else None,
        predicts=before[scored],
    )


def present_tokens(completion_mask: Bool[Tensor, "N C"]) -> Bool[Tensor, "N C"]:
    """Completion tokens that later ones may attend to: all tokens up to the last scored one."""
    return completion_mask.flip(-1).cummax(-1).values.flip(-1)


class _Plan:
    """Runs of tokens and the runs that they attend to, computed on the host from lengths alone.

    `before[k]` holds, for the k-th completion that is not left out, the row's token before each of its tokens; the
    count begins at 1, and `before[0]` is empty. `copies` has the number of copies of each prompt.
    """

    def __init__(self, prompt_lengths: Sequence[int], lengths: Sequence[Sequence[int]]) -> None:
        self.before: list[Tensor] = [torch.zeros(0, dtype=torch.long)]
        self._runs: list[tuple[int, int]] = []
        self._branches: list[tuple[int, int, int, int]] = []
        shared = [sharing_pays(width, row) for width, row in zip(prompt_lengths, lengths, strict=True)]
        self.source: list[Tensor] | None = None if all(shared) else []
        self.copies = [
            1 if share else sum(length > 0 for length in row) for share, row in zip(shared, lengths, strict=True)
        ]
        starts = list(accumulate(prompt_lengths, initial=0))[:-1]
        self._cursor, completion = 0, sum(prompt_lengths)
        if self.source is None:
            # Every prompt first, then every completion: the row is its own source.
            self._runs += zip(starts, prompt_lengths, strict=True)
            self._cursor = completion
        for start, width, row, share in zip(starts, prompt_lengths, lengths, shared, strict=True):
            grow = self._branch if share else self._copy
            completion = grow((start, width), completion, [length for length in row if length])

    def tiles(self) -> list[Tile]:
        """Causal tiles of all runs, then the branches' tiles to their prompts."""
        tiles = [_tile(blocks, None) for blocks in _similar(self._runs)]
        exact: dict[int, list[tuple[int, int, int, int]]] = {}
        for branch in self._branches:
            exact.setdefault(branch[1], []).append(branch)
        for same in exact.values():
            tiles += [_tile([block[2:] for block in each], [block[:2] for block in each]) for each in _similar(same)]
        return tiles

    def _branch(self, prompt: tuple[int, int], completion: int, lengths: Sequence[int]) -> int:
        """Adds one copy of the prompt and completions that branch off it; returns where the next sources begin."""
        start, width = prompt
        if self.source is not None:
            self.source += [torch.arange(start, start + width), torch.arange(completion, completion + sum(lengths))]
            start, self._cursor = self._cursor, self._cursor + width
            self._runs.append((start, width))
        self._branches.append((start, width, self._cursor, sum(lengths)))
        for length in lengths:
            first = torch.tensor([start + width - 1])
            self.before.append(torch.cat([first, torch.arange(self._cursor, self._cursor + length - 1)]))
            self._runs.append((self._cursor, length))
            self._cursor += length
        return completion + sum(lengths)

    def _copy(self, prompt: tuple[int, int], completion: int, lengths: Sequence[int]) -> int:
        """Adds a run for every completion, each with a copy of the prompt."""
        assert self.source is not None
        start, width = prompt
        for length in lengths:
            self.source += [torch.arange(start, start + width), torch.arange(completion, completion + length)]
            first = self._cursor + width - 1
            self.before.append(torch.arange(first, first + length))
            self._runs.append((self._cursor, width + length))
            self._cursor += width + length
            completion += length
        return completion


def prompt_tiles(lengths: Sequence[int], device: torch.device) -> tuple[tuple[Tile, ...], list[int]]:
    """Tiles of prompts that lie side by side, and where each one starts."""
    starts = list(accumulate(lengths, initial=0))[:-1]
    tiles = [_tile(blocks, None) for blocks in _similar(list(zip(starts, lengths, strict=True)))]
    return _on_device(tiles, [], device)[0], starts


def _tile(queries: Sequence[tuple[int, int]], keys: Sequence[tuple[int, int]] | None) -> Tile:
    """A tile in which runs (start, length) attend to other runs, or to themselves if `keys` is None."""
    index, filler = _index(queries)
    start = queries[0][0] if len(queries) == 1 else None
    if keys is None:
        return Tile(queries=index, keys=index, causal=True, filler=filler, query_start=start, key_start=start)
    key_start = keys[0][0] if len(keys) == 1 else None
    key_index, _ = _index(keys)
    return Tile(queries=index, keys=key_index, causal=False, filler=filler, query_start=start, key_start=key_start)


def _similar(blocks: Sequence[Block]) -> list[list[Block]]:
    """Groups blocks (..., length) of similar length, so that each group is one tile.

    A block is padded by at most a fifth of the tile's length, except that blocks of up to 64 tokens share a tile.
    """
    groups: list[list[Block]] = []
    for block in sorted(blocks, key=itemgetter(-1), reverse=True):
        longest = groups[-1][0][-1] if groups else 0
        if groups and (block[-1] >= 0.8 * longest or longest <= 64):
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups


def _index(blocks: Sequence[tuple[int, int]]) -> tuple[Int[Tensor, "b L"], Bool[Tensor, "b L"] | None]:
    """The tokens of runs (start, length), shorter runs padded with their last token, and a mask of the padding."""
    start, length = torch.tensor(blocks).unbind(1)
    steps = torch.arange(int(length.max()))
    index = start[:, None] + steps.minimum(length[:, None] - 1)
    filler = steps >= length[:, None]
    return index, filler if bool(filler.any()) else None


def _on_device(
    tiles: Sequence[Tile], others: Sequence[Tensor], device: torch.device
) -> tuple[tuple[Tile, ...], list[Tensor]]:
    """Copies tiles and other indices to a device in one transfer."""
    names = [[name for name in TENSORS if getattr(tile, name) is not None] for tile in tiles]
    held = [getattr(tile, name) for tile, own in zip(tiles, names, strict=True) for name in own]
    moved = iter(to_device([*held, *others], device))
    there = []
    for tile, own in zip(tiles, names, strict=True):
        fields = {name: next(moved) for name in own}
        there.append(replace(tile, **fields | ({"keys": fields["queries"]} if tile.causal else {})))
    return tuple(there), list(moved)
