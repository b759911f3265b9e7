"""Attention by tiles against one masked softmax in float64: values, gradients, and controls that must fail."""

from types import SimpleNamespace

import pytest
import torch

from lightning_mmrl.ops import tiled_attention
from lightning_mmrl.ops.tiled_attention import PartialAttention, Tile, attend, attend_block, merge

HEADS, KEY_HEADS, WIDTH = 4, 2, 8
EXACT = 1e-12


def row(num_tokens, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(num_tokens, heads, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [(3 * torch.randn(shape, generator=generator, dtype=dtype)).requires_grad_() for shape in shapes]


def reference(query, key, value, allowed, scale):
    key, value = (x.repeat_interleave(HEADS // KEY_HEADS, dim=1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value)


def tree():
    """A prompt of 5 tokens with completions of 3 and 2, and a lone run of 4: [0..4 | 5 6 7 | 8 9 | 10..13]."""
    own = Tile(
        queries=torch.tensor([[5, 6, 7], [8, 9, 9]]),
        keys=torch.tensor([[5, 6, 7], [8, 9, 9]]),
        causal=True,
        filler=torch.tensor([[False, False, False], [False, False, True]]),
    )
    prompt, alone = torch.arange(5)[None], torch.arange(10, 14)[None]
    tiles = [
        Tile(queries=prompt, keys=prompt, causal=True, query_start=0, key_start=0),
        Tile(queries=alone, keys=alone, causal=True),
        own,
        Tile(queries=torch.arange(5, 10)[None], keys=prompt, causal=False, key_start=0),
    ]
    allowed = torch.zeros(14, 14, dtype=torch.bool)
    for start, end in ((0, 5), (5, 8), (8, 10), (10, 14)):
        allowed[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
    allowed[5:10, :5] = True
    return tiles, allowed


HANDED_OVER = {
    "cum_seq_q": torch.tensor(1),
    "cum_seq_k": torch.tensor(2),
    "max_q": 3,
    "max_k": 4,
    "philox_seed": torch.tensor(5),
    "philox_offset": torch.tensor(6),
}
"""By its names in the backward pass, in the order in which the forward pass returns it."""


def named(operator, values, keywords):
    """Every argument of a CUDA operator by the name that its schema in torch gives it."""
    names = [argument.name for argument in operator.default._schema.arguments]
    found = dict(zip(names, values, strict=False)) | keywords
    assert set(found) == set(names)
    assert found["dropout_p"] == 0
    return found


def cuda_forward(*values, **keywords):
    given = named(torch.ops.aten._scaled_dot_product_flash_attention, values, keywords)
    assert given["return_debug_mask"] is False, "it is as large as the scores"
    names = ("query", "key", "value", "is_causal", "scale")
    output, total, _ = tiled_attention._Plain().forward(*(given[name] for name in names))
    return output, total, *HANDED_OVER.values(), torch.empty(0)


def cuda_backward(*values, **keywords):
    given = named(torch.ops.aten._scaled_dot_product_flash_attention_backward, values, keywords)
    assert all(given[name] is value for name, value in HANDED_OVER.items())
    names = ("grad_out", "query", "key", "value", "out")
    assert all(given[name].transpose(1, 2).is_contiguous() for name in names), "the kernel reads [b, L, H, d]"
    how = (given["is_causal"], given["scale"], ())
    return tiled_attention._Plain().backward(*(given[name] for name in names), given["logsumexp"], *how)


@pytest.fixture(params=["kernel of this device", "plain", "as CUDA is called"])
def kernel(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(tiled_attention, "_kernel", lambda query: tiled_attention._Plain())
    if request.param == "as CUDA is called":
        monkeypatch.setattr(tiled_attention, "_kernel", lambda query: tiled_attention._CudaFlash())
        operators = {
            "_scaled_dot_product_flash_attention": cuda_forward,
            "_scaled_dot_product_flash_attention_backward": cuda_backward,
        }
        monkeypatch.setattr(tiled_attention, "_ATEN", SimpleNamespace(**operators))


class Elsewhere(torch.Tensor):
    """Says on which device it lies, and holds nothing."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(func)


@pytest.mark.parametrize(
    ("device", "dtype", "width", "expected"),
    [
        ("cpu", torch.float32, 8, "_CpuFlash"),
        ("cpu", torch.bfloat16, 8, "_CpuFlash"),
        ("cuda", torch.bfloat16, 8, "_CudaFlash"),
        ("cuda", torch.float16, 64, "_CudaFlash"),
        ("cuda", torch.float32, 8, "_Plain"),
        ("cuda", torch.bfloat16, 12, "_Plain"),
        ("meta", torch.bfloat16, 8, "_Plain"),
    ],
)
def test_which_kernel_computes_what(device, dtype, width, expected):
    """The flash kernel of CUDA takes half precision and heads of a multiple of 8 alone."""
    query = torch.Tensor._make_wrapper_subclass(Elsewhere, (1, 2, 3, width), dtype=dtype, device=device)
    assert type(tiled_attention._kernel(query)).__name__ == expected


@pytest.mark.usefixtures("kernel")
def test_tiles_equal_one_masked_softmax_in_values_and_gradients():
    tiles, allowed = tree()
    inputs = row(14)
    ours, expected = attend(*inputs, tiles, 0.3), reference(*inputs, allowed, 0.3)
    torch.testing.assert_close(ours, expected, rtol=0, atol=EXACT)
    seed = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for got, want in zip(
        torch.autograd.grad(ours, inputs, seed), torch.autograd.grad(expected, inputs, seed), strict=True
    ):
        assert want.abs().max() > 0.1
        torch.testing.assert_close(got, want, rtol=0, atol=EXACT)


@pytest.mark.parametrize("kernel", ["kernel of this device", "plain"], indirect=True)
@pytest.mark.usefixtures("kernel")
def test_gradients_agree_with_finite_differences():
    tiles, _ = tree()
    assert torch.autograd.gradcheck(lambda *inputs: attend(*inputs, tiles, 0.1), row(14), fast_mode=True)


def test_large_scores_stay_finite_also_in_fillers():
    tiles, allowed = tree()
    inputs = row(14, torch.float32)
    ours = attend(*inputs, tiles, 100.0)
    torch.testing.assert_close(ours, reference(*inputs, allowed, 100.0), rtol=0, atol=1e-4)
    grads = torch.autograd.grad(ours.sum(), inputs)
    assert all(grad.isfinite().all() for grad in grads)


def test_a_tile_that_sees_a_sibling_shows():
    tiles, allowed = tree()
    run = torch.arange(5, 10)[None]
    leaking = [*tiles[:2], Tile(queries=run, keys=run, causal=True), tiles[3]]
    inputs = row(14)
    assert (attend(*inputs, leaking, 0.3) - reference(*inputs, allowed, 0.3)).abs().max() > 0.1


def test_a_missing_prompt_tile_shows():
    tiles, allowed = tree()
    inputs = row(14)
    assert (attend(*inputs, tiles[:3], 0.3) - reference(*inputs, allowed, 0.3)).abs().max() > 0.1


def test_backward_with_each_tiles_own_sums_in_place_of_the_merged_ones_shows(monkeypatch):
    tiles, allowed = tree()
    inputs = row(14)
    real = tiled_attention._kernel(inputs[0])

    class OwnSums:
        forward = real.forward

        def backward(self, grad, *saved):
            blocks, (causal, scale, extra) = saved[:3], saved[5:]
            own, own_total, _ = real.forward(*blocks, causal, scale)
            return real.backward(grad, *blocks, own, own_total, causal, scale, extra)

    monkeypatch.setattr(tiled_attention, "_kernel", lambda query: OwnSums())
    ours = torch.autograd.grad(attend(*inputs, tiles, 0.3).sum(), inputs)
    expected = torch.autograd.grad(reference(*inputs, allowed, 0.3).sum(), inputs)
    assert max((a - b).abs().max() for a, b in zip(ours, expected, strict=True)) > 0.1


@pytest.mark.usefixtures("kernel")
def test_merged_blocks_equal_attention_to_all_keys():
    query, key, value = (x.detach().transpose(0, 1)[None] for x in row(9))
    whole = attend_block(query, key, value, causal=False, scale=0.3)
    halves = [
        attend_block(query, key[:, :, part], value[:, :, part], causal=False, scale=0.3)
        for part in (slice(0, 4), slice(4, 9))
    ]
    merged = merge(*halves)
    assert isinstance(merged, PartialAttention)
    torch.testing.assert_close(merged.output, whole.output, rtol=0, atol=EXACT)
    torch.testing.assert_close(merged.logsumexp, whole.logsumexp, rtol=0, atol=EXACT)


def test_bfloat16_is_within_its_own_rounding_of_float64():
    tiles, allowed = tree()
    inputs = row(14, torch.bfloat16)
    exact = [x.detach().double() for x in inputs]
    # Outputs are averages of values below 12; bfloat16 keeps 8 bits, so one rounding is below 12 / 256.
    torch.testing.assert_close(
        attend(*inputs, tiles, 0.3).double(), reference(*exact, allowed, 0.3), rtol=0, atol=12 / 256
    )


def test_types_that_differ_are_refused():
    """Rotated queries and keys are float32 under autocast, and values are not."""
    tiles, _ = tree()
    query, key, value = row(14, torch.float32)
    with pytest.raises(TypeError, match=r"torch\.float32, torch\.float32, torch\.bfloat16; cast them alike"):
        attend(query, key, value.bfloat16(), tiles, 0.3)
    blocks = [tensor.detach().transpose(0, 1)[None] for tensor in (query, key, value)]
    with pytest.raises(TypeError, match="cast them alike"):
        attend_block(blocks[0], blocks[1].bfloat16(), blocks[2], causal=True, scale=0.3)


def test_autocast_changes_no_kernel(monkeypatch):
    """Negative control: its own product of the same scores is rounded."""
    tiles, allowed = tree()
    monkeypatch.setattr(tiled_attention, "_kernel", lambda query: tiled_attention._Plain())
    found = []
    for enabled in (False, True):
        inputs = row(14, torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = attend(*inputs, tiles, 0.3)
            output.sum().backward()
        found.append([output, *(tensor.grad for tensor in inputs)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(reference(*row(14, torch.float32), allowed, 0.3).float(), found[0][0])
