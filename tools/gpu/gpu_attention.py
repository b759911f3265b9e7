"""Step 1: the attention of scoring and of decoding against float64.

The bound on the error of an operation, in the largest entry and in root mean square, is twice the error of torch's own
`scaled_dot_product_attention` on the same inputs in the same dtype, plus the rounding of a merge, at the size of the
result. Torch's own attention rounds probabilities and outputs as ours does, and twice its error leaves room for another
order of sums. A merge rounds its result once, a unit of the dtype. It weighs parts by exp of their log-sum-exps in
float32, which are about log(M) + 1/2 for M keys with scores of unit variance, and as many float32 units off.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from bench_models import SEED
from gpu_record import Record, Setup, seconds_of
from gpu_worlds import PAD
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lightning_mmrl.data.collate import EncodedSample, collate_prompts
from lightning_mmrl.models.positions import prompt_positions
from lightning_mmrl.models.shared_prefix import pack, prompt_tiles
from lightning_mmrl.ops.decode_attention import attend_padded, padding_bias
from lightning_mmrl.ops.tiled_attention import PartialAttention, Tile, attend, attend_block, merge
from lightning_mmrl.types.batches import ScoringBatch
from lightning_mmrl.types.records import Message, Sample

HEADS = ((16, 2), (28, 4))
WIDTHS = (64, 80, 128)
DTYPES = (torch.float32, torch.bfloat16)
TOY_TREE = ((37, (9, 1, 12, 10)), (33, (8, 11, 1, 1)))
TREE = ((700, (90, 1, 120, 100)), (650, (80, 110, 1, 70)))
"""Prompts with the lengths of their completions: fillers in all tiles, and completions of one token."""
LONG = 16_384
LONG_TREE = ((3000, (307,) * 8),) * 3


class Shape(NamedTuple):
    """Query heads, key heads and width of a head."""

    heads: int
    key_heads: int
    width: int


class Inputs(NamedTuple):
    """Queries, keys and values, and the gradient of the output."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad: Tensor


def run(setup: Setup, record: Record) -> None:
    """Compares all shapes and both dtypes, then takes times."""
    tree = setup.choose(toy=TOY_TREE, large=TREE)
    shapes = [Shape(*heads, width) for heads in HEADS for width in WIDTHS]
    for dtype in DTYPES:
        worst = {"attend": 0.0, "gradients": 0.0, "prompts": 0.0, "decoding": 0.0}
        for shape in shapes:
            for name, found in ratios(setup, tree, shape, dtype).items():
                worst[name] = max(worst[name], found)
                record.expect(found <= 1, f"{name} {shape} {dtype}: {found:.2f} times the allowed error")
        for name, found in worst.items():
            record.figure(f"{name}_{str(dtype).removeprefix('torch.')}_error_over_bound", found)
    if setup.on_gpu:
        _times(setup, record)
    else:
        record.skip(f"time of attention over {LONG} tokens", "a CPU says nothing about the kernels of a GPU")


def ratios(
    setup: Setup, tree: Sequence[tuple[int, Sequence[int]]], shape: Shape, dtype: torch.dtype
) -> dict[str, float]:
    """Errors over their bounds; at most 1 if attention is right."""
    tiles, seen = tiles_of(setup, tree), visible(tree).to(setup.device)
    outcome = compare(tiles, seen, inputs_of(setup, len(seen), shape, dtype))
    lengths = [length for length, _ in tree] + [1]
    runs, _ = prompt_tiles(lengths, setup.device)
    alone = visible([(length, ()) for length in lengths]).to(setup.device)
    prompts = compare(runs, alone, inputs_of(setup, len(alone), shape, dtype))
    return {
        "attend": outcome[0],
        "gradients": max(outcome[1:]),
        "prompts": max(prompts),
        "decoding": decoding_ratio(setup, [length for length, _ in tree], shape, dtype),
    }


def tiles_of(setup: Setup, tree: Sequence[tuple[int, Sequence[int]]]) -> Sequence[Tile]:
    """The tiles that the product lays over prompts and completions: all prompts first, then all completions."""
    items, lengths = [], torch.tensor([length for _, group in tree for length in group])
    for number, (length, _) in enumerate(tree):
        positions, following = prompt_positions([None] * length, ())
        sample = Sample(id=str(number), messages=(Message(role="user", content="noise"),))
        prompt = {"input_ids": torch.ones(length, dtype=torch.long), "position_ids": positions}
        items.append(EncodedSample(sample=sample, prompt={**prompt, "next_position": torch.tensor([following])}))
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    batch = ScoringBatch(
        prompts=collate_prompts(items, PAD),
        completion_ids=mask.long(),
        completion_mask=mask,
        group_size=len(tree[0][1]),
    )
    row = pack(batch.to(setup.device))
    assert row.source is None, "every group of the tree shares its prompt"
    return row.layout.tiles


def visible(tree: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
    """True where a query [T, 1] may see a key [1, T], written down run by run without tiles."""
    runs, start = [], 0
    for length, _ in tree:
        runs.append((start, length, None))
        start += length
    for prompt, (_, group) in enumerate(tree):
        for length in group:
            runs.append((start, length, prompt))
            start += length
    seen = torch.zeros(start, start, dtype=torch.bool)
    for first, length, prompt in runs:
        own = slice(first, first + length)
        seen[own, own] = torch.ones(length, length, dtype=torch.bool).tril()
        if prompt is not None:
            begin, width, _ = runs[prompt]
            seen[own, begin : begin + width] = True
    return seen


def inputs_of(setup: Setup, num_tokens: int, shape: Shape, dtype: torch.dtype) -> Inputs:
    """Noise for T tokens."""
    generator = torch.Generator(setup.device).manual_seed(SEED)
    counts = (shape.heads, shape.key_heads, shape.key_heads, shape.heads)
    sizes = ((num_tokens, heads, shape.width) for heads in counts)
    return Inputs(*(torch.randn(size, generator=generator, device=setup.device).to(dtype) for size in sizes))


def compare(tiles: Sequence[Tile], seen: Tensor, inputs: Inputs) -> list[float]:
    """Errors over their bounds of the output, and of the gradients of queries, keys and values."""
    scale = inputs.query.shape[-1] ** -0.5
    leaves = [tensor.clone().requires_grad_() for tensor in inputs[:3]]
    output = attend(*leaves, tiles, scale)
    output.backward(inputs.grad)
    ours = [output.detach(), *(leaf.grad for leaf in leaves)]
    theirs = _dense(inputs, seen, scale)
    truth = _dense(Inputs(*(tensor.double() for tensor in inputs)), seen, scale)
    merging = _rounding_of_merge(inputs.query.dtype, int(seen.sum(-1).max()))
    return [_over_bound(*each, merging) for each in zip(ours, theirs, truth, strict=True)]


def _rounding_of_merge(dtype: torch.dtype, num_keys: int) -> float:
    """The relative error that a merge of parts over so many keys makes."""
    return torch.finfo(dtype).eps + torch.finfo(torch.float32).eps * (math.log(num_keys) + 0.5)


def _dense(inputs: Inputs, seen: Tensor, scale: float) -> list[Tensor]:
    """Torch's own attention under a dense mask; each query head has its copy of the keys, added up in float64."""
    query, key, value = (tensor.transpose(0, 1) for tensor in inputs[:3])
    copies = len(query) // len(key)
    leaves = [query.clone(), *(tensor.repeat_interleave(copies, dim=0) for tensor in (key, value))]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    output = scaled_dot_product_attention(*(leaf[None] for leaf in leaves), attn_mask=seen, scale=scale)[0]
    output.backward(inputs.grad.transpose(0, 1))
    grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
    shared = [grad.double().unflatten(0, (-1, copies)).sum(1) for grad in grads[1:]]
    return [tensor.detach().transpose(0, 1) for tensor in (output, grads[0], *shared)]


def _over_bound(ours: Tensor, theirs: Tensor, truth: Tensor, merging: float) -> float:
    """The error over its bound, in the largest entry or in root mean square, whichever is worse."""
    found = 0.0
    for size in (lambda x: x.abs().max(), lambda x: x.square().mean().sqrt()):
        error, own = (float(size(each.double() - truth)) for each in (ours, theirs))
        bound = 2 * own + merging * float(size(truth))
        found = max(found, error / bound if math.isfinite(error) else math.inf)
    return found


def decoding_ratio(setup: Setup, lengths: Sequence[int], shape: Shape, dtype: torch.dtype) -> float:
    """The error over its bound of one decoding step: padded prompts, merged with the rows' own tokens."""
    group, own_tokens, scale = 4, 5, shape.width**-0.5
    generator = torch.Generator(setup.device).manual_seed(SEED)

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=setup.device).to(dtype)

    count, longest = len(lengths), max(lengths)
    padding = torch.arange(longest) >= torch.tensor(lengths)[:, None]
    bias = padding_bias(padding)
    bias = None if bias is None else bias.to(setup.device)
    query = noise(count, shape.heads, group, shape.width)
    key, value = (noise(count, shape.key_heads, longest, shape.width) for _ in range(2))
    own_key, own_value = (noise(count * group, shape.key_heads, own_tokens, shape.width) for _ in range(2))

    part = PartialAttention(*(x.transpose(1, 2).flatten(0, 1) for x in attend_padded(query, key, value, bias, scale)))
    rows = query.transpose(1, 2).flatten(0, 1)
    own = attend_block(rows.unsqueeze(2), own_key, own_value, causal=False, scale=scale)
    ours = merge(PartialAttention(own.output.squeeze(2), own.logsumexp.squeeze(2)), part).output.to(dtype)

    keys, values = (
        torch.cat([prompt.repeat_interleave(group, dim=0), own], dim=2)
        for prompt, own in ((key, own_key), (value, own_value))
    )
    hidden = torch.nn.functional.pad(padding, (0, own_tokens)).to(setup.device).repeat_interleave(group, dim=0)

    def dense(precision: torch.dtype) -> Tensor:
        copies = shape.heads // shape.key_heads
        wide = (each.to(precision).repeat_interleave(copies, dim=1) for each in (keys, values))
        mask = ~hidden[:, None, None]
        return scaled_dot_product_attention(rows.to(precision).unsqueeze(2), *wide, attn_mask=mask, scale=scale)[
            :, :, 0
        ]

    merging = _rounding_of_merge(dtype, longest + own_tokens)
    return _over_bound(ours, dense(dtype), dense(torch.float64), merging)


def _times(setup: Setup, record: Record) -> None:
    """Milliseconds for 16k tokens in bfloat16: a causal run beside torch's own kernel, and a tree of three prompts."""
    shape = Shape(16, 2, 128)
    scale = shape.width**-0.5
    for name, tiles in ("causal", prompt_tiles([LONG], setup.device)[0]), ("tree", tiles_of(setup, LONG_TREE)):
        num_tokens = sum(int(tile.queries.numel()) for tile in tiles if tile.causal)
        inputs = inputs_of(setup, num_tokens, shape, torch.bfloat16)
        leaves = [tensor.clone().requires_grad_() for tensor in inputs[:3]]
        attended = partial(attend, *leaves, tiles, scale)
        with torch.no_grad():
            record.figure(f"attend_16k_{name}_forward_ms", 1e3 * seconds_of(setup, attended))
        both = seconds_of(setup, lambda attended=attended, grad=inputs.grad: attended().backward(grad))
        record.figure(f"attend_16k_{name}_forward_backward_ms", 1e3 * both)
    query, key, value = (tensor.transpose(0, 1)[None] for tensor in inputs_of(setup, LONG, shape, torch.bfloat16)[:3])

    def stock() -> Tensor:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)

    record.figure("torch_16k_causal_forward_ms", 1e3 * seconds_of(setup, stock))
