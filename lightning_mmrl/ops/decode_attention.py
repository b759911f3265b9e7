"""Attention of new tokens to blocks of cached keys, without gradients: for decoding."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.ops.tiled_attention import (
    PartialAttention,
    attend_block,
    merge,
    require_one_dtype,
    without_autocast,
)


def padding_bias(padding: Bool[Tensor, "b M"]) -> Float[Tensor, "b 1 1 M"] | None:
    """The bias that hides padding from `attend_padded`: minus infinity there, zero elsewhere; None without padding.

    >>> padding_bias(torch.tensor([[False, True]]))
    tensor([[[[0., -inf]]]])
    """
    if not bool(padding.any()):
        return None
    return torch.zeros(padding.shape, device=padding.device).masked_fill_(padding, -torch.inf)[:, None, None]


def attend_padded(
    query: Float[Tensor, "b H L d"],
    key: Float[Tensor, "b K M d"],
    value: Float[Tensor, "b K M d"],
    bias: Float[Tensor, "b 1 Q M"] | None,
    scale: float,
) -> PartialAttention:
    """softmax(scale * q k + bias) v over each block of keys, and the log-sum-exp of its scores.

    K key heads are shared by H query heads; the bias has a row for each query, or one for all (Q = L or 1). A bias of
    minus infinity gives a weight of exactly zero, so the padding of a shorter block changes nothing. With a bias, half
    precision is computed in float32, and so is the output; without one, the device's own kernel decides, as in
    `attend_block`.

    >>> key, value = torch.zeros(1, 1, 2, 1), torch.tensor([[[[3.0], [9.0]]]])
    >>> attend_padded(torch.ones(1, 1, 1, 1), key, value, padding_bias(torch.tensor([[False, True]])), 1.0).output
    tensor([[[[3.]]]])
    """
    if bias is None:
        return attend_block(query, key, value, causal=False, scale=scale)
    require_one_dtype(query, key, value)
    precision = torch.promote_types(query.dtype, torch.float32)
    query, key, value, bias = (tensor.to(precision) for tensor in (query, key, value, bias))
    if query.device.type == "cpu":
        run = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return PartialAttention(*run(query, key, value, attn_mask=bias, scale=scale))
    with without_autocast(query.device):
        return _attend_by_matmul(query, key, value, bias, scale)


def is_half(dtype: torch.dtype) -> bool:
    """Whether `attend_padded` would convert keys of this type.

    >>> is_half(torch.bfloat16), is_half(torch.float32)
    (True, False)
    """
    return torch.promote_types(dtype, torch.float32) != dtype


def attend_in_parts(
    query: Float[Tensor, "b H L d"],
    common: Float[Tensor, "2 b K N d"],
    rest: Float[Tensor, "2 b K M d"],
    bias: Float[Tensor, "b 1 Q M"],
    scale: float,
) -> PartialAttention:
    """Attention to N keys and values that no query is denied, and to M more under a bias, as one attention to both.

    The common ones are read in their own type by the device's kernel; only the rest is computed in float32, as in
    `attend_padded`. Every query must see a key of the rest.

    >>> keys = torch.zeros(2, 1, 1, 1, 1)
    >>> hidden = padding_bias(torch.tensor([[False, True]]))
    >>> attend_in_parts(torch.ones(1, 1, 1, 1), keys + 2, torch.cat([keys + 4, keys + 9], 3), hidden, 0.0).output
    tensor([[[[3.]]]])
    """
    precision = torch.promote_types(query.dtype, torch.float32)
    part = attend_padded(query.to(precision), rest[0].to(precision), rest[1].to(precision), bias, scale)
    if not common.shape[3]:
        return part
    return merge(attend_block(query, common[0], common[1], causal=False, scale=scale), part)


def _attend_by_matmul(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> PartialAttention:
    """Computes the same with matrix products, for devices whose kernels take no bias or return no log-sum-exp."""
    num_heads, num_queries = query.shape[1:3]
    folded = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)
    if bias.shape[2] > 1:
        bias = bias.repeat(1, 1, num_heads // key.shape[1], 1)
    scores = torch.matmul(folded * scale, key.mT) + bias
    total = scores.logsumexp(-1)
    output = torch.matmul((scores - total.unsqueeze(-1)).exp(), value)
    return PartialAttention(
        output.flatten(1, 2).unflatten(1, (num_heads, num_queries)),
        total.flatten(1, 2).unflatten(1, (num_heads, num_queries)),
    )
