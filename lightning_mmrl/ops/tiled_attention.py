"""Attention over a tree of tokens, tile by tile: exact, without a mask and without copies of keys.

A row of T tokens is covered by tiles. A causal tile is a run of tokens; each attends to itself and to earlier tokens of
the run. Any other tile lets tokens attend to all keys of a run further up the tree, such as completions to their
prompt. Every token lies in one causal tile and in any number of others. It sees the keys of its own tiles only, so
neither siblings nor neighbors can leak.

The softmax over several tiles is merged from the tiles' results. Let o_k be the output and l_k the log-sum-exp of a
token on tile k. Then

    l = log sum_k exp(l_k),    o = sum_k exp(l_k - l) o_k

are the log-sum-exp and the output over the union of the keys (arXiv:2205.14135, section 3.1). The backward pass runs
each tile's own kernel with the merged o and l. From them the kernel recomputes the probabilities exp(s - l) and the row
sums of do * o of the whole row, so its gradients are the tile's exact share (arXiv:2310.01889, section 3).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_ATEN = torch.ops.aten


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tile:
    """b blocks of L queries against b blocks of M keys, as indices of the row's tokens.

    `filler` is True where a slot only pads a shorter block: the slot repeats the block's last token, and its result is
    dropped. A causal tile attends to itself: `keys` is `queries`, and fillers come last, so that only fillers see them.
    The keys of any other tile have no fillers. If the queries or the keys are a single block of consecutive tokens,
    `query_start` or `key_start` gives its first token, which saves copies.

    With fillers, `slots` are the places of all other slots among the b * L, and `tokens` the row's tokens there. Both
    are found from `filler` if they are not given; a tile is therefore made on the host, which then waits for no device.

    >>> prompt = torch.tensor([[0, 1]])
    >>> Tile(queries=prompt, keys=prompt, causal=True).query_blocks(torch.zeros(3, 1, 2)).shape
    torch.Size([1, 1, 2, 2])
    """

    queries: Int[Tensor, "b L"]
    keys: Int[Tensor, "b M"]
    causal: bool
    filler: Bool[Tensor, "b L"] | None = None
    query_start: int | None = None
    key_start: int | None = None
    slots: Int[Tensor, " n"] | None = None
    tokens: Int[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        if self.filler is not None and self.slots is None:
            slots = (~self.filler).flatten().nonzero().squeeze(-1)
            object.__setattr__(self, "slots", slots)
            object.__setattr__(self, "tokens", self.queries.flatten()[slots])

    def query_blocks(self, tokens: Float[Tensor, "T H d"]) -> Float[Tensor, "b H L d"]:
        """The rows of `tokens` at the tile's queries."""
        return _blocks(tokens, self.queries, self.query_start)

    def key_blocks(self, tokens: Float[Tensor, "T K d"]) -> Float[Tensor, "b K M d"]:
        """The rows of `tokens` at the tile's keys."""
        return _blocks(tokens, self.keys, self.key_start)


def attend(
    query: Float[Tensor, "T H d"],
    key: Float[Tensor, "T K d"],
    value: Float[Tensor, "T K d"],
    tiles: Sequence[Tile],
    scale: float,
) -> Float[Tensor, "T H d"]:
    """softmax(scale * q k) v of each token over the keys of all its tiles; K key heads are shared by H query heads.

    Causal tiles must come first and cover every token once. Queries, keys and values have one dtype; autocast changes
    nothing here.

    >>> value = torch.tensor([[[2.0]], [[4.0]], [[8.0]]])
    >>> prompt, completions = torch.tensor([[0]]), torch.tensor([[1], [2]])
    >>> runs = [Tile(queries=index, keys=index, causal=True) for index in (prompt, completions)]
    >>> branch = Tile(queries=completions.T, keys=prompt, causal=False)
    >>> attend(torch.zeros(3, 1, 1), torch.zeros(3, 1, 1), value, [*runs, branch], 1.0).flatten()
    tensor([2., 3., 5.])
    """
    require_one_dtype(query, key, value)
    return _TiledAttention.apply(query, key, value, tuple(tiles), scale)  # type: ignore[return-value]


def require_one_dtype(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Refuses queries, keys and values of several types: a kernel chosen by one of them would be wrong or slow.

    >>> require_one_dtype(torch.ones(1), torch.ones(1), torch.ones(1).half())
    Traceback (most recent call last):
    ...
    TypeError: attention got queries, keys and values of torch.float32, torch.float32, torch.float16; cast them alike

    Raises:
        TypeError: Naming the types.
    """
    found = [tensor.dtype for tensor in (query, key, value)]
    if len(set(found)) > 1:
        raise TypeError(f"attention got queries, keys and values of {', '.join(map(str, found))}; cast them alike")


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The type that autocast computes in on a device, or None while it is off.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     autocast_dtype(torch.device("cpu"))
    torch.bfloat16
    """
    kind = device.type
    enabled = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if enabled else None


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switches autocast off, which would compute products of float32 scores in half precision.

    >>> scores = torch.ones(2, 2)
    >>> with torch.autocast("cpu", torch.bfloat16), without_autocast(scores.device):
    ...     (scores @ scores).dtype
    torch.float32
    """
    return nullcontext() if autocast_dtype(device) is None else torch.autocast(device.type, enabled=False)


class PartialAttention(NamedTuple):
    """Attention to some of the keys, and the log-sum-exp of its scores, which `merge` needs.

    >>> PartialAttention(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1)).logsumexp
    tensor([[[0.]]])
    """

    output: Float[Tensor, "b H L d"]
    logsumexp: Float[Tensor, "b H L"]


def attend_block(
    query: Float[Tensor, "b H L d"],
    key: Float[Tensor, "b K M d"],
    value: Float[Tensor, "b K M d"],
    *,
    causal: bool,
    scale: float,
) -> PartialAttention:
    """Computes the attention of one dense block without a gradient, for decoding.

    >>> one = torch.ones(1, 1, 1, 1)
    >>> attend_block(one, one, 3 * one, causal=False, scale=1.0)
    PartialAttention(output=tensor([[[[3.]]]]), logsumexp=tensor([[[1.]]]))
    """
    require_one_dtype(query, key, value)
    output, logsumexp, _ = _kernel(query).forward(query, key, value, causal, scale)
    return PartialAttention(output, logsumexp)


def merge(first: PartialAttention, second: PartialAttention) -> PartialAttention:
    """Attention to the union of two disjoint sets of keys, in the precision of `logsumexp`: float32 at least.

    >>> one = PartialAttention(torch.tensor([[[[1.0]]]]), torch.zeros(1, 1, 1))
    >>> merge(one, PartialAttention(3 * one.output, one.logsumexp)).output
    tensor([[[[2.]]]])
    """
    share = (second.logsumexp - first.logsumexp).sigmoid().unsqueeze(-1)
    output = torch.lerp(first.output.to(share), second.output.to(share), share)
    return PartialAttention(output, torch.logaddexp(first.logsumexp, second.logsumexp))


class _TiledAttention(torch.autograd.Function):
    """Forward and backward over the tiles of a row."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiles: tuple[Tile, ...], scale: float
    ) -> Float[Tensor, "T H d"]:
        kernel, precision = _kernel(query), torch.promote_types(query.dtype, torch.float32)
        output = query.new_empty(query.shape, dtype=precision)
        total = query.new_empty(query.shape[:2], dtype=precision)
        parts = []
        for tile in tiles:
            blocks = tile.query_blocks(query), tile.key_blocks(key), tile.key_blocks(value)
            part, logsumexp, extra = kernel.forward(*blocks, tile.causal, scale)
            parts.append((tile, extra))
            rows, part = _tokens(tile, part.transpose(1, 2))
            _, logsumexp = _tokens(tile, logsumexp.transpose(1, 2))
            if not tile.causal:
                merged = merge(PartialAttention(output[rows], total[rows]), PartialAttention(part, logsumexp))
                part, logsumexp = merged
            output.index_copy_(0, rows, part.to(precision))
            total.index_copy_(0, rows, logsumexp)
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, total)
        ctx.parts, ctx.scale = parts, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, total = ctx.saved_tensors
        kernel, grad_output = _kernel(query), grads[0]
        sums = [torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in (query, key, value)]
        for tile, extra in ctx.parts:
            grad_block = tile.query_blocks(grad_output)
            if tile.filler is not None:
                grad_block = grad_block.masked_fill(tile.filler[:, None, :, None], 0.0)
            saved = (tile.query_blocks(output), tile.query_blocks(total.unsqueeze(-1)).squeeze(-1))
            blocks = tile.query_blocks(query), tile.key_blocks(key), tile.key_blocks(value)
            shares = kernel.backward(grad_block, *blocks, *saved, tile.causal, ctx.scale, extra)
            _add(sums[0], shares[0], tile.queries, tile.query_start)
            _add(sums[1], shares[1], tile.keys, tile.key_start)
            _add(sums[2], shares[2], tile.keys, tile.key_start)
        return (*sums, None, None)


def _blocks(tokens: Float[Tensor, "T H d"], index: Int[Tensor, "b L"], start: int | None) -> Float[Tensor, "b H L d"]:
    if start is not None:
        return tokens.narrow(0, start, index.shape[1]).transpose(0, 1).unsqueeze(0)
    return tokens.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)


def _add(
    total: Float[Tensor, "T H d"], blocks: Float[Tensor, "b H L d"], index: Int[Tensor, "b L"], start: int | None
) -> None:
    if start is not None:
        total.narrow(0, start, index.shape[1]).add_(blocks[0].transpose(0, 1))
    else:
        total.index_add_(0, index.flatten(), blocks.transpose(1, 2).flatten(0, 1).to(total.dtype))


def _tokens(tile: Tile, values: Float[Tensor, "b L ..."]) -> tuple[Int[Tensor, " n"], Float[Tensor, "n ..."]]:
    """The tile's real tokens and their values."""
    if tile.slots is None or tile.tokens is None:
        return tile.queries.flatten(), values.flatten(0, 1)
    return tile.tokens, values.flatten(0, 1).index_select(0, tile.slots)


class _Kernel(Protocol):
    """Attention that returns its log-sum-exp, and takes the merged one in its backward pass."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, tuple[Any, ...]]: ...

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, total: Tensor, *how: Any
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class _CpuFlash:
    """The blocked kernel of scaled_dot_product_attention on the CPU, which supports shared key heads.

    Half precision is computed in float32: results rounded before the merge would be rounded twice.
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        run = _ATEN._scaled_dot_product_flash_attention_for_cpu
        query, key, value = _upcast(query, key, value)
        output, logsumexp = run(query, key, value, 0.0, causal, scale=scale)
        return output, logsumexp, ()

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, total: Tensor, *how: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        causal, scale, _ = how
        run = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward
        return run(*_upcast(grad, query, key, value, output), total, 0.0, causal, scale=scale)


class _CudaFlash:
    """The flash-attention kernel on CUDA for half-precision tensors, called as torch's own context parallelism does."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        run = _ATEN._scaled_dot_product_flash_attention
        output, logsumexp, *extra = run(query, key, value, 0.0, causal, False, scale=scale)
        return output, logsumexp, tuple(extra[:6])

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, total: Tensor, *how: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        causal, scale, (starts_q, starts_k, longest_q, longest_k, seed, offset) = how
        run = _ATEN._scaled_dot_product_flash_attention_backward
        contiguous = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (grad, query, key, value, output))
        lengths = (starts_q, starts_k, longest_q, longest_k)
        return run(*contiguous, total.contiguous(), *lengths, 0.0, causal, seed, offset, scale=scale)


class _Plain:
    """Full scores, for devices and precisions without a kernel; also the oracle of the other kernels."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        with without_autocast(query.device):
            scores = self._scores(query, key, causal, scale)
            total = scores.logsumexp(-1)
            weights = (scores - total.unsqueeze(-1)).exp()
            output = torch.einsum("bkrlm,bkmd->bkrld", weights, value.to(weights.dtype)).flatten(1, 2)
        return output, total.flatten(1, 2), ()

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, total: Tensor, *how: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        causal, scale, _ = how
        heads = (key.shape[1], -1)
        with without_autocast(query.device):
            scores = self._scores(query, key, causal, scale)
            weights = (scores - total.unflatten(1, heads).unsqueeze(-1)).exp()
            grad, output = (x.to(weights.dtype).unflatten(1, heads) for x in (grad, output))
            grad_value = torch.einsum("bkrlm,bkrld->bkmd", weights, grad)
            grad_weights = torch.einsum("bkrld,bkmd->bkrlm", grad, value.to(weights.dtype))
            grad_scores = weights * (grad_weights - (grad * output).sum(-1, keepdim=True)) * scale
            grad_query = torch.einsum("bkrlm,bkmd->bkrld", grad_scores, key.to(weights.dtype)).flatten(1, 2)
            grad_key = torch.einsum("bkrlm,bkrld->bkmd", grad_scores, query.to(weights.dtype).unflatten(1, heads))
        return grad_query, grad_key, grad_value

    def _scores(self, query: Tensor, key: Tensor, causal: bool, scale: float) -> Float[Tensor, "b K r L M"]:
        precision = torch.promote_types(query.dtype, torch.float32)
        folded = query.to(precision).unflatten(1, (key.shape[1], -1))
        scores = torch.einsum("bkrld,bkmd->bkrlm", folded, key.to(precision)) * scale
        if not causal:
            return scores
        later = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).triu(1)
        return scores.masked_fill(later, float("-inf"))


def _upcast(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]


def _kernel(query: Tensor) -> _Kernel:
    if query.device.type == "cpu":
        return _CpuFlash()
    if query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] % 8 == 0:
        return _CudaFlash()
    return _Plain()
