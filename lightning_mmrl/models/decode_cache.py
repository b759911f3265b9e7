"""Keys and values that rows of a decoding attend to: of prompts, held once each, and of the rows' own tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from lightning_mmrl.models.spans import Spans
from lightning_mmrl.ops.decode_attention import attend_in_parts, attend_padded, is_half, padding_bias
from lightning_mmrl.ops.tiled_attention import PartialAttention, attend_block, merge
from lightning_mmrl.ops.transfer import on_device, to_device

OWN_TOKENS = 32
"""Number of a row's own tokens that the cache has room for at first; the room doubles whenever it is full."""


class Bucket:
    """Keys and values of prompts of similar length, padded to the longest: one tensor [2, b, K, P, d] for each layer.

    In half precision, kernels take no padding. What follows the keys that all of the prompts have is therefore kept
    apart in float32, converted once.

    Args:
        prompts: The numbers of the prompts.
        index: The places of their tokens in the packed row of a prefill.
        padding: True where a prompt is padded; on the host.

    Attributes:
        divided: Whether a part is kept apart, so that no own keys can follow.
        layers: The tensor of each layer, without the part that is kept apart.
    """

    def __init__(self, prompts: list[int], index: Int[Tensor, "b P"], padding: Bool[Tensor, "b P"]) -> None:
        self.prompts = prompts
        self.divided = False
        self._index = index
        self._end = index.shape[1]
        self.layers: list[Tensor] = []
        self._rest: list[Tensor] = []
        bias = padding_bias(padding)
        self._bias = None if bias is None else bias.to(index.device, non_blocking=True)
        # One key that all have is left to the rest, where each query must see one.
        self._num_common = int((~padding).sum(-1).min()) - 1

    def append_layer(self, key: Float[Tensor, "T K d"], value: Float[Tensor, "T K d"]) -> None:
        """Keeps the prompts' part of a layer's packed keys and values."""
        index = self._index.flatten()
        blocks = [tokens.index_select(0, index).unflatten(0, self._index.shape) for tokens in (key, value)]
        layer = torch.stack([block.transpose(1, 2) for block in blocks])
        self.divided = self._bias is not None and is_half(layer.dtype)
        if self.divided:
            self._rest.append(layer[:, :, :, self._num_common :].float())
            layer = layer[:, :, :, : self._num_common].clone()
        self.layers.append(layer)

    def make_room(self, num_own: int, max_tokens: int | None) -> None:
        """Makes `num_own` tokens after each prompt visible; `extend` writes them."""
        length = self._index.shape[1]
        self._end = length + num_own
        if self._end > self.layers[0].shape[3]:
            more = length + room_for(num_own, max_tokens) - self.layers[0].shape[3]
            for number, layer in enumerate(self.layers):  # one after the other, so that memory holds one twice
                self.layers[number] = pad(layer, (0, 0, 0, more))
            self._bias = None if self._bias is None else pad(self._bias, (0, more))

    def extend(self, layer: int, key: Float[Tensor, "b K d"], value: Float[Tensor, "b K d"]) -> None:
        """Writes a token at the end of each prompt's part of a layer; used only if each prompt has one row."""
        self.layers[layer][0, :, :, self._end - 1] = key
        self.layers[layer][1, :, :, self._end - 1] = value

    def attend(self, layer: int, query: Float[Tensor, "S H d"], scale: float) -> PartialAttention:
        """Attention of the S rows, which lie prompt by prompt with S / b for each, to their prompts."""
        blocks = query.unflatten(0, (len(self.prompts), -1)).transpose(1, 2)
        if self.divided:
            assert self._bias is not None
            bias = self._bias[..., self._num_common :]
            part = attend_in_parts(blocks, self.layers[layer], self._rest[layer], bias, scale)
        else:
            key, value = self.layers[layer][:, :, :, : self._end]
            bias = None if self._bias is None else self._bias[..., : self._end]
            part = attend_padded(blocks, key, value, bias, scale)
        return PartialAttention(*(tensor.transpose(1, 2).flatten(0, 1) for tensor in part))

    def keep(self, slots: list[int]) -> None:
        """Continues with some of the bucket's prompts."""
        self.prompts = [self.prompts[slot] for slot in slots]
        there = on_device(slots, self._index.device)
        self.layers = [layer.index_select(1, there) for layer in self.layers]
        self._rest = [layer.index_select(1, there) for layer in self._rest]
        self._bias = None if self._bias is None else self._bias.index_select(0, there)


class PromptKeys:
    """Keys and values of all prompts, for rows that each have one of them.

    Args:
        buckets: The prompts.
        owner: The prompt of each row.

    Attributes:
        buckets: Prompts of similar length.
    """

    def __init__(self, buckets: list[Bucket], owner: Sequence[int]) -> None:
        self.buckets, self._owner = buckets, list(owner)
        self._plan: _Plan | None = None
        self._planned: list[int] = []

    def arrange(self, widths: Sequence[int], device: torch.device) -> None:
        """Prepares passes over `widths[r]` tokens of each row r."""
        if self._plan is None or self._planned != widths:
            owner = [prompt for prompt, width in zip(self._owner, widths, strict=True) for _ in range(width)]
            self._plan = _plan([bucket.prompts for bucket in self.buckets], owner, device)
            self._planned = list(widths)

    def extend(self, layer: int, key: Float[Tensor, "T K d"], value: Float[Tensor, "T K d"]) -> None:
        """Writes a token at the end of each prompt; used only if each prompt has one row."""
        assert self._plan is not None
        for bucket, keys, values in zip(self.buckets, *map(self._plan.split, (key, value)), strict=True):
            bucket.extend(layer, keys, values)

    def attend(self, layer: int, query: Float[Tensor, "T H d"], scale: float) -> PartialAttention:
        """Attention of each token to its row's prompt."""
        assert self._plan is not None
        asking = zip(self.buckets, self._plan.split(query), strict=True)
        parts = [bucket.attend(layer, rows, scale) for bucket, rows in asking]
        return PartialAttention(*(self._plan.join(part) for part in zip(*parts, strict=True)))

    def keep(self, rows: Sequence[int]) -> None:
        """Continues with some of the rows; a bucket shrinks when half of its prompts end."""
        self._owner = [self._owner[row] for row in rows]
        needed, self._plan, buckets = set(self._owner), None, []
        for bucket in self.buckets:
            slots = [slot for slot, prompt in enumerate(bucket.prompts) if prompt in needed]
            if slots and 2 * len(slots) <= len(bucket.prompts):
                bucket.keep(slots)
            if slots:
                buckets.append(bucket)
        self.buckets = buckets


class SharedCache:
    """Holds prompt keys once per prompt and own keys once per row; computes the attention of R rows in a step.

    If each prompt has one row, there are no drafts and no bucket is divided, the row's own keys lie after the prompt's,
    and one call attends to both.

    With drafts, rows may differ in their number of own tokens; keys after a row's last token are hidden.
    """

    def __init__(
        self, buckets: list[Bucket], num_prompts: int, group_size: int, *, drafts: bool, max_tokens: int | None
    ) -> None:
        self._max_tokens = max_tokens
        self._prompts = PromptKeys(buckets, [prompt for prompt in range(num_prompts) for _ in range(group_size)])
        self._alone = group_size == 1 and not drafts and not any(bucket.divided for bucket in buckets)
        self._own: list[Tensor] = []  # by layer, the rows' own keys and values [2, R, K, C, d]
        self._lengths = [0] * num_prompts * group_size
        self._room = 0  # columns of `_own` that a step may see
        self._ragged: _Ragged | None = None

    def begin_step(self, spans: Spans) -> None:
        """Makes room for the new tokens of each row."""
        widths = spans.widths
        self._room = max(map(sum, zip(self._lengths, widths, strict=True)))
        even = spans.even_width == 1 and min(self._lengths) + 1 == self._room
        self._ragged = None if even else _Ragged(spans, self._lengths, self._room)
        self._prompts.arrange(widths, spans.device)
        if self._alone:
            assert even, "start the decoding with drafts"
            for bucket in self._prompts.buckets:
                bucket.make_room(self._room, self._max_tokens)

    def retain(self, counts: Sequence[int], *, finite: bool = True) -> None:
        """Counts the first new tokens of each row as the row's own.

        A weight of zero hides the keys of the others, unless they are not `finite`: then they are set to zero.
        """
        self._lengths = [length + count for length, count in zip(self._lengths, counts, strict=True)]
        if not finite and self._own:
            lengths = on_device(self._lengths, self._own[0].device)
            hidden = torch.arange(self._own[0].shape[3], device=lengths.device) >= lengths[:, None]
            for tokens in self._own:
                tokens.masked_fill_(hidden[:, None, :, None], 0.0)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Float[Tensor, "T H d"]:
        """Attention of each new token to its row's own tokens up to itself, and to the row's prompt."""
        if self._alone:
            self._prompts.extend(layer, key, value)
        attended = self._prompts.attend(layer, query, scale)
        if not self._alone:
            attended = merge(self._attend_own(layer, query, key, value, scale), attended)
        return attended.output.to(query.dtype)

    def _attend_own(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> PartialAttention:
        """Adds the keys of the new tokens, then attends to all own keys of each row."""
        if layer == len(self._own):
            room = room_for(self._room, self._max_tokens)
            self._own.append(key.new_zeros(2, len(self._lengths), key.shape[1], room, key.shape[2]))
        if (held := self._own[layer].shape[3]) < self._room:
            self._own[layer] = pad(self._own[layer], (0, 0, 0, room_for(self._room, self._max_tokens) - held))
        held = self._own[layer][:, :, :, : self._room]
        if self._ragged is not None:
            return self._ragged.attend(query, key, value, held, scale)
        keys, values = held
        keys[:, :, -1], values[:, :, -1] = key, value
        own = attend_block(query.unsqueeze(2), keys, values, causal=False, scale=scale)
        return PartialAttention(own.output.squeeze(2), own.logsumexp.squeeze(2))

    def keep(self, rows: list[int], there: Int[Tensor, " K"]) -> None:
        """Continues with some of the rows, given on host and device; a bucket shrinks when half of its prompts end."""
        self._lengths = [self._lengths[row] for row in rows]
        self._own = [tokens.index_select(1, there) for tokens in self._own]
        self._prompts.keep(rows)


class _Ragged:
    """Attention of a step in which rows have different numbers of own tokens, or of new ones.

    Args:
        spans: The new tokens.
        lengths: Own tokens of each row before them.
        room: Columns of the rows' own keys that are looked at.
    """

    def __init__(self, spans: Spans, lengths: Sequence[int], room: int) -> None:
        self._spans, self._num_common = spans, min(lengths)
        before = on_device(lengths, spans.device)
        self._columns = spans.positions(before)
        seen = spans.blocks(self._columns)  # the column of each query: the last one that the query sees
        hidden = torch.arange(room, device=spans.device) > seen.unsqueeze(-1)
        self._bias = torch.zeros(hidden.shape, device=spans.device).masked_fill_(hidden, -torch.inf).unsqueeze(1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, held: Tensor, scale: float) -> PartialAttention:
        """Adds keys and values of T new tokens to the cache of R rows [2, R, K, room, d], then attends to it."""
        rows, (keys, values) = self._spans.row, held
        keys[rows, :, self._columns], values[rows, :, self._columns] = key, value
        blocks = self._spans.blocks(query).transpose(1, 2)
        if is_half(query.dtype):
            common, rest = held.tensor_split([self._num_common], dim=3)
            part = attend_in_parts(blocks, common, rest, self._bias[..., self._num_common :], scale)
        else:
            part = attend_padded(blocks, keys, values, self._bias, scale)
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
    return _Plan(sizes, *to_device([torch.tensor(row_of_slot), torch.tensor(slot_of_row)], device))


def room_for(needed: int, max_tokens: int | None) -> int:
    """Own tokens that a cache has room for if `needed` are there: `OWN_TOKENS`, doubled until all fit.

    >>> room_for(1, None), room_for(33, None), room_for(33, 40)
    (32, 64, 40)
    """
    room = OWN_TOKENS
    while room < needed:
        room *= 2
    return room if max_tokens is None else max(needed, min(room, max_tokens))
