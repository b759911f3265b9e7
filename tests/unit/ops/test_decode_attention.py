"""Blocks of keys that are filled up attend as they do alone; without the bias they do not."""

import pytest
import torch

from lightning_mmrl.ops import decode_attention
from lightning_mmrl.ops.decode_attention import attend_in_parts, attend_padded, padding_bias
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


NUM_COMMON = min(LENGTHS) + 1


@pytest.fixture
def longer(blocks):
    """Blocks with two more keys, so that all have three at least."""
    generator = torch.Generator().manual_seed(1)
    query, *both = blocks
    more = [2 * torch.randn(3, 2, 2, 8, generator=generator, dtype=torch.float64) for _ in both]
    lengths = torch.tensor(LENGTHS) + 2
    bias = padding_bias(torch.arange(max(LENGTHS) + 2) >= lengths[:, None])
    return query, torch.stack([torch.cat(pair, dim=2) for pair in zip(more, both, strict=True)]), bias


@pytest.mark.parametrize("num_common", [0, NUM_COMMON])
def test_attention_in_parts_is_attention_to_both(longer, num_common):
    query, both, bias = longer
    found = attend_in_parts(query, *both.tensor_split([num_common], dim=3), bias[..., num_common:], 0.4)
    for part, expected in zip(found, attend_padded(query, *both, bias, 0.4), strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=EXACT)


def test_control_a_bias_that_is_one_key_off_shows(longer):
    query, both, bias = longer
    shifted = bias[..., NUM_COMMON:].roll(1, -1)
    found = attend_in_parts(query, *both.tensor_split([NUM_COMMON], dim=3), shifted, 0.4)
    assert (found.output - attend_padded(query, *both, bias, 0.4).output).abs().max() > 0.1


def test_parts_in_half_precision_are_as_close_to_float64_as_one_call_is(longer):
    """Inputs are rounded alike, so that only the attention differs; both add in float32."""
    query, both, bias = longer
    query, both = query.bfloat16(), both.bfloat16()
    truth = attend_padded(query.double(), *both.double(), bias, 0.4)
    common, rest = both.tensor_split([NUM_COMMON], dim=3)
    found = attend_in_parts(query, common, rest.float(), bias[..., NUM_COMMON:], 0.4)
    for part, expected, whole in zip(found, truth, attend_padded(query, *both, bias, 0.4), strict=True):
        assert part.dtype == torch.float32
        assert (part - expected).abs().max() <= max(4 * (whole - expected).abs().max(), 1e-6)
