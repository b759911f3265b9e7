"""Blocks of keys that are filled up attend as they do alone; without the bias they do not."""

import pytest
import torch

from lightning_mmrl.ops import decode_attention
from lightning_mmrl.ops.decode_attention import attend_padded, padding_bias
from lightning_mmrl.ops.tiled_attention import PartialAttention, attend_block

LENGTHS = (7, 4, 1)
EXACT = 1e-12


@pytest.fixture
def blocks():
    generator = torch.Generator().manual_seed(0)

    def draw(heads, length):
        return 2 * torch.randn((len(LENGTHS), heads, length, 8), generator=generator, dtype=torch.float64)

    return draw(4, 3), draw(2, max(LENGTHS)), draw(2, max(LENGTHS))


@pytest.fixture
def bias():
    return padding_bias(torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None])


def by_kernel(query, key, value, bias):
    return attend_padded(query, key, value, bias, 0.4)


def by_matmul(query, key, value, bias):
    return decode_attention._attend_by_matmul(query, key, value, bias.to(query.dtype), 0.4)


def alone(query, key, value):
    """Each block without what fills it up."""
    parts = []
    for block, length in enumerate(LENGTHS):
        one = slice(block, block + 1)
        parts.append(
            attend_block(query[one], key[one, :, :length], value[one, :, :length], causal=False, scale=0.4),
        )
    return PartialAttention(*(torch.cat(part) for part in zip(*parts, strict=True)))


@pytest.mark.parametrize("attend", [by_kernel, by_matmul])
def test_padding_has_no_weight(blocks, bias, attend):
    query, key, value = blocks
    for part, expected in zip(attend(query, key, value, bias), alone(query, key, value), strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("attend", [by_kernel, by_matmul])
def test_what_fills_a_block_up_does_not_matter_even_if_it_is_huge(blocks, bias, attend):
    query, key, value = blocks
    hidden = bias.isinf().transpose(-1, -2)
    spoiled = attend(query, key.masked_fill(hidden, 1e6), value.masked_fill(hidden, -1e6), bias)
    for part, expected in zip(spoiled, attend(query, key, value, bias), strict=True):
        assert torch.equal(part, expected)


@pytest.mark.parametrize("attend", [by_kernel, by_matmul])
def test_control_without_a_bias_padding_counts(blocks, bias, attend):
    query, key, value = blocks
    assert (attend(query, key, value, torch.zeros_like(bias)).output - alone(query, key, value).output).abs().max() > 1


def test_blocks_of_one_length_need_no_bias(blocks):
    assert padding_bias(torch.zeros(2, 3, dtype=torch.bool)) is None
    expected = attend_block(*blocks, causal=False, scale=0.4)
    for part, other in zip(attend_padded(*blocks, None, 0.4), expected, strict=True):
        assert torch.equal(part, other)


@pytest.mark.parametrize("attend", [by_kernel, by_matmul])
def test_each_query_may_have_a_bias_of_its_own(blocks, attend):
    """Query q of each block sees 2 + q keys."""
    query, key, value = blocks
    hidden = torch.arange(max(LENGTHS)) >= torch.arange(2, 2 + query.shape[2])[:, None]
    bias = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf).expand(len(LENGTHS), 1, -1, -1)
    part = attend(query, key, value, bias)
    for place in range(query.shape[2]):
        one, seen = slice(place, place + 1), slice(2 + place)
        expected = attend_block(query[:, :, one], key[:, :, seen], value[:, :, seen], causal=False, scale=0.4)
        torch.testing.assert_close(part.output[:, :, one], expected.output, rtol=0, atol=EXACT)
        torch.testing.assert_close(part.logsumexp[:, :, one], expected.logsumexp, rtol=0, atol=EXACT)


def test_half_precision_is_computed_in_float32(blocks, bias):
    half = [tensor.bfloat16() for tensor in blocks]
    part = attend_padded(*half, bias, 0.4)
    expected = attend_padded(*(tensor.float() for tensor in half), bias, 0.4)
    assert part.output.dtype == part.logsumexp.dtype == torch.float32
    assert torch.equal(part.output, expected.output)
