"""Token-by-token decoding of N = B * G rows over B prompts; each prompt is computed once.

`SharedDecoding` also keeps it once. `StockDecoding`, for models whose completions cannot share a prompt, copies it.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.shared_prefix import layout_arguments, prompt_tiles
from lightning_mmrl.models.spans import Spans, last_kept, spans_of
from lightning_mmrl.models.stock_decoding import StockDecoding
from lightning_mmrl.ops.decode_attention import attend_padded, padding_bias
from lightning_mmrl.ops.tiled_attention import PartialAttention, attend, attend_block, merge
from lightning_mmrl.types.batches import PromptBatch

PREFILL_TOKENS = 16_384
"""Prompt tokens that enter the decoder together; the number bounds the memory of a prefill and changes nothing else."""

OWN_TOKENS = 32
"""Number of a row's own tokens that the cache has room for at first."""


class Decoding(Protocol):
    """Rows that are decoded together; rows that ended can be left out.

    `extend` appends several tokens to each row, some of them drafts, and `retain` then forgets those that are wrong.
    """

    @property
    def states(self) -> Float[Tensor, "R D"]:
        """The state that predicts the next token of each row."""
        ...

    def advance(self, tokens: Int[Tensor, " R"]) -> None:
        """Appends one token to each row."""
        ...

    def extend(self, tokens: Int[Tensor, " T"], widths: Sequence[int]) -> Float[Tensor, "T D"]:
        """Appends `widths[r]` tokens, one at least, to each row r in one pass; returns the state after each token.

        Tokens and states lie row by row. `retain` must follow.
        """
        ...

    def retain(self, counts: Sequence[int]) -> None:
        """Keeps the first `counts[r]` tokens that `extend` appended to row r; the others leave no trace."""
        ...

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Continues with some of the rows, in the given order."""
        ...


def start_decoding(policy: Policy, prompts: PromptBatch, group_size: int, *, drafts: bool = False) -> Decoding:
    """Prefills each of B prompts once, for G rows per prompt in prompt order; call it without gradients.

    Only with `drafts` may rows be extended by several tokens.
    """
    kind = SharedDecoding if policy.sharing_refusal is None else StockDecoding
    return kind(policy, prompts, group_size, drafts=drafts)


class SharedDecoding:
    """Decoding on one packed row per step: no padding, and each prompt's keys are read once for all its rows."""

    def __init__(self, policy: Policy, prompts: PromptBatch, group_size: int, *, drafts: bool = False) -> None:
        self._policy = policy
        lengths = prompts.prompt_mask.sum(-1).tolist()
        rows: list[int] = []
        states: list[Float[Tensor, "b D"]] = []
        buckets: list[_Bucket] = []
        for chunk in _chunks(lengths, PREFILL_TOKENS):
            chosen = prompts.select(chunk)
            mask = chosen.prompt_mask
            layout = _PrefillLayout(chunk, mask.sum(-1).tolist(), mask.device)
            hidden = policy.text_states(
                chosen.input_ids[mask][None],
                chosen.position_ids[:, mask][:, None],
                features=policy.media.features(chosen),
                attention=layout_arguments(layout, mask.device),
            )
            states.append(hidden[0, layout.last])
            buckets += layout.buckets
            rows += chunk
        order = torch.tensor(rows).argsort().to(prompts.input_ids.device)
        self._cache = _SharedCache(buckets, len(lengths), group_size, drafts=drafts)
        self._spans: Spans | None = None
        self._position = prompts.next_position.repeat_interleave(group_size)
        self.states = torch.cat(states)[order].repeat_interleave(group_size, dim=0)

    def advance(self, tokens: Int[Tensor, " R"]) -> None:
        """Appends one token to each row, in one decoder pass over R tokens."""
        widths = [1] * len(tokens)
        self.states = self.extend(tokens, widths)
        self._position = self._position + 1
        self._cache.retain(widths)

    def extend(self, tokens: Int[Tensor, " T"], widths: Sequence[int]) -> Float[Tensor, "T D"]:
        """Appends several tokens to each row, in one decoder pass over T tokens; rows need no padding."""
        spans = self._spans = spans_of(widths, self._spans, tokens.device)
        self._cache.begin_step(spans)
        positions = spans.positions(self._position).expand(3, 1, -1)
        attention = layout_arguments(self._cache, tokens.device)
        self._appended = self._policy.text_states(tokens[None], positions, attention=attention)[0]
        return self._appended

    def retain(self, counts: Sequence[int]) -> None:
        """Keeps the first of the appended tokens; the keys of the others are overwritten later."""
        assert self._spans is not None
        states = self._appended
        self.states = last_kept(self.states, states, self._spans, counts)
        self._position = self._position + torch.tensor(counts, device=states.device)
        self._cache.retain(counts, finite=bool(states.isfinite().all()))

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Drops the own keys of rows that ended, and prompts that no row needs."""
        self._cache.keep(rows)
        self._position, self.states = self._position[rows], self.states[rows]


class _Bucket:
    """Keys and values of prompts of similar length, padded to the longest: one tensor [2, b, K, P, d] for each layer.

    Args:
        prompts: The numbers of the prompts.
        index: The places of their tokens in the packed row of a prefill.
        padding: True where a prompt is padded; on the host.
    """

    def __init__(self, prompts: list[int], index: Int[Tensor, "b P"], padding: Bool[Tensor, "b P"]) -> None:
        self.prompts = prompts
        self._index = index
        self._end = index.shape[1]
        self._layers: list[Tensor] = []
        bias = padding_bias(padding)
        self._bias = None if bias is None else bias.to(index.device)

    def append_layer(self, key: Float[Tensor, "T K d"], value: Float[Tensor, "T K d"]) -> None:
        """Keeps the prompts' part of a layer's packed keys and values."""
        index = self._index.flatten()
        blocks = [tokens.index_select(0, index).unflatten(0, self._index.shape) for tokens in (key, value)]
        self._layers.append(torch.stack([block.transpose(1, 2) for block in blocks]))

    def make_room(self, num_own: int) -> None:
        """Makes `num_own` tokens after each prompt visible; `extend` writes them."""
        self._end = self._index.shape[1] + num_own
        if self._end > self._layers[0].shape[3]:
            more = max(OWN_TOKENS, num_own)
            self._layers = [pad(layer, (0, 0, 0, more)) for layer in self._layers]
            self._bias = None if self._bias is None else pad(self._bias, (0, more))

    def extend(self, layer: int, key: Float[Tensor, "b K d"], value: Float[Tensor, "b K d"]) -> None:
        """Writes a token at the end of each prompt's part of a layer; used only if each prompt has one row."""
        self._layers[layer][0, :, :, self._end - 1] = key
        self._layers[layer][1, :, :, self._end - 1] = value

    def attend(self, layer: int, query: Float[Tensor, "S H d"], scale: float) -> PartialAttention:
        """Attention of the S rows, which lie prompt by prompt with S / b for each, to their prompts."""
        key, value = self._layers[layer][:, :, :, : self._end]
        bias = None if self._bias is None else self._bias[..., : self._end]
        blocks = query.unflatten(0, (len(self.prompts), -1)).transpose(1, 2)
        part = attend_padded(blocks, key, value, bias, scale)
        return PartialAttention(*(tensor.transpose(1, 2).flatten(0, 1) for tensor in part))

    def keep(self, slots: list[int]) -> None:
        """Continues with some of the bucket's prompts."""
        self.prompts = [self.prompts[slot] for slot in slots]
        self._layers = [layer[:, slots] for layer in self._layers]
        self._bias = None if self._bias is None else self._bias[slots]


class _PrefillLayout:
    """Causal attention within prompts that lie side by side in one row; keeps their keys and values."""

    def __init__(self, prompts: list[int], lengths: list[int], device: torch.device) -> None:
        self._tiles, starts = prompt_tiles(lengths, device)
        self.last = torch.tensor([start + length - 1 for start, length in zip(starts, lengths, strict=True)]).to(device)
        self.buckets = []
        for slots in _similar(lengths):
            start, length = torch.tensor([(starts[slot], lengths[slot]) for slot in slots]).unsqueeze(-1).unbind(1)
            steps = torch.arange(int(length.max()))
            index, padding = start + steps.minimum(length - 1), steps >= length
            self.buckets.append(_Bucket([prompts[slot] for slot in slots], index.to(device), padding))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of every prompt token to itself and to the tokens before it."""
        for bucket in self.buckets:
            bucket.append_layer(key, value)
        return attend(query, key, value, self._tiles, scale)


class _SharedCache:
    """Holds prompt keys once per prompt and own keys once per row; computes the attention of R rows in a step.

    If each prompt has one row and there are no drafts, the row's own keys lie after the prompt's, and one call attends
    to both. With drafts, rows may differ in their number of own tokens; keys after a row's last token are hidden.
    """

    def __init__(self, buckets: list[_Bucket], num_prompts: int, group_size: int, *, drafts: bool) -> None:
        self._buckets = buckets
        self._owner = [prompt for prompt in range(num_prompts) for _ in range(group_size)]
        self._alone = group_size == 1 and not drafts
        self._own: list[Tensor] = []  # by layer, the rows' own keys and values [2, R, K, C, d]
        self._lengths = [0] * len(self._owner)
        self._room = 0  # columns of `_own` that a step may see
        self._ragged: _Ragged | None = None
        self._plan: _Plan | None = None
        self._planned: list[int] = []

    def begin_step(self, spans: Spans) -> None:
        """Makes room for the new tokens of each row."""
        widths = spans.widths
        self._room = max(map(sum, zip(self._lengths, widths, strict=True)))
        even = spans.even_width == 1 and min(self._lengths) + 1 == self._room
        self._ragged = None if even else _Ragged(spans, self._lengths, self._room)
        if self._plan is None or self._planned != widths:
            owner = [prompt for prompt, width in zip(self._owner, widths, strict=True) for _ in range(width)]
            self._plan = _plan([bucket.prompts for bucket in self._buckets], owner, spans.device)
            self._planned = widths
        if self._alone:
            assert even, "start the decoding with drafts"
            for bucket in self._buckets:
                bucket.make_room(self._room)

    def retain(self, counts: Sequence[int], *, finite: bool = True) -> None:
        """Counts the first new tokens of each row as the row's own.

        A weight of zero hides the keys of the others, unless they are not `finite`: then they are set to zero.
        """
        self._lengths = [length + count for length, count in zip(self._lengths, counts, strict=True)]
        if not finite and self._own:
            lengths = torch.tensor(self._lengths, device=self._own[0].device)
            hidden = torch.arange(self._own[0].shape[3], device=lengths.device) >= lengths[:, None]
            for tokens in self._own:
                tokens.masked_fill_(hidden[:, None, :, None], 0.0)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Float[Tensor, "T H d"]:
        """Attention of each new token to its row's own tokens up to itself, and to the row's prompt."""
        assert self._plan is not None
        if self._alone:
            for bucket, keys, values in zip(self._buckets, *map(self._plan.split, (key, value)), strict=True):
                bucket.extend(layer, keys, values)
        asking = zip(self._buckets, self._plan.split(query), strict=True)
        parts = [bucket.attend(layer, rows, scale) for bucket, rows in asking]
        attended = PartialAttention(*(self._plan.join(part) for part in zip(*parts, strict=True)))
        if not self._alone:
            attended = merge(self._attend_own(layer, query, key, value, scale), attended)
        return attended.output.to(query.dtype)

    def _attend_own(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> PartialAttention:
        """Writes the keys of the new tokens, and attends to those of each row."""
        if layer == len(self._own):
            self._own.append(key.new_zeros(2, len(self._owner), key.shape[1], OWN_TOKENS, key.shape[2]))
        while self._own[layer].shape[3] < self._room:
            self._own[layer] = torch.cat([self._own[layer], torch.zeros_like(self._own[layer])], dim=3)
        keys, values = self._own[layer][:, :, :, : self._room]
        if self._ragged is not None:
            return self._ragged.attend(query, key, value, keys, values, scale)
        keys[:, :, -1], values[:, :, -1] = key, value
        own = attend_block(query.unsqueeze(2), keys, values, causal=False, scale=scale)
        return PartialAttention(own.output.squeeze(2), own.logsumexp.squeeze(2))

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Continues with some of the rows; a bucket shrinks when half of its prompts have ended."""
        chosen = rows.tolist()
        self._owner, self._lengths = ([values[row] for row in chosen] for values in (self._owner, self._lengths))
        self._own = [tokens[:, rows] for tokens in self._own]
        needed, self._plan, buckets = set(self._owner), None, []
        for bucket in self._buckets:
            slots = [slot for slot, prompt in enumerate(bucket.prompts) if prompt in needed]
            if slots and 2 * len(slots) <= len(bucket.prompts):
                bucket.keep(slots)
            if slots:
                buckets.append(bucket)
        self._buckets = buckets


class _Ragged:
    """Attention of a step in which rows have different numbers of own tokens, or of new ones.

    Args:
        spans: The new tokens.
        lengths: Own tokens of each row before them.
        room: Columns of the rows' own keys that are looked at.
    """

    def __init__(self, spans: Spans, lengths: Sequence[int], room: int) -> None:
        self._spans = spans
        before = torch.tensor(lengths, device=spans.device)
        self._columns = spans.positions(before)
        seen = spans.blocks(self._columns)  # the column of each query: the last one that the query sees
        hidden = torch.arange(room, device=spans.device) > seen.unsqueeze(-1)
        self._bias = torch.zeros(hidden.shape, device=spans.device).masked_fill_(hidden, -torch.inf).unsqueeze(1)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, scale: float
    ) -> PartialAttention:
        """Writes keys and values of the T new tokens into those of the R rows, and attends to them."""
        rows = self._spans.row
        keys[rows, :, self._columns], values[rows, :, self._columns] = key, value
        part = attend_padded(self._spans.blocks(query).transpose(1, 2), keys, values, self._bias, scale)
        return PartialAttention(*(self._spans.tokens(tensor.transpose(1, 2)) for tensor in part))


class _Plan(NamedTuple):
    """Puts rows into slots by their prompts: slots lie bucket by bucket, equally many for each prompt of a bucket.

    `row_of_slot` and `slot_of_row` are None if slot i is row i. A slot that no row needs repeats the query of another.
    """

    sizes: list[int]
    row_of_slot: Int[Tensor, " S"] | None
    slot_of_row: Int[Tensor, " R"] | None

    def split(self, rows: Float[Tensor, "R ..."]) -> tuple[Float[Tensor, "S ..."], ...]:
        """The slots of each bucket, filled from the rows."""
        slots = rows if self.row_of_slot is None else rows.index_select(0, self.row_of_slot)
        return slots.split(self.sizes)

    def join(self, slots: tuple[Float[Tensor, "S ..."], ...]) -> Float[Tensor, "R ..."]:
        """The result of each row, gathered from the slots of the buckets."""
        together = slots[0] if len(slots) == 1 else torch.cat(slots)
        return together if self.slot_of_row is None else together.index_select(0, self.slot_of_row)


def _plan(buckets: Sequence[Sequence[int]], owner: Sequence[int], device: torch.device) -> _Plan:
    rows: dict[int, list[int]] = {}
    for row, prompt in enumerate(owner):
        rows.setdefault(prompt, []).append(row)
    row_of_slot, slot_of_row, sizes = [], [0] * len(owner), []
    for prompts in buckets:
        width = max(len(rows.get(prompt, ())) for prompt in prompts)
        sizes.append(width * len(prompts))
        for prompt in prompts:
            own = rows.get(prompt, [])
            for place, row in enumerate(own):
                slot_of_row[row] = len(row_of_slot) + place
            row_of_slot += own + [own[-1] if own else 0] * (width - len(own))
    if row_of_slot == list(range(len(owner))):
        return _Plan(sizes, None, None)
    return _Plan(sizes, torch.tensor(row_of_slot, device=device), torch.tensor(slot_of_row, device=device))


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
