import inspect
import math

import pytest
import torch

from lightning_mmrl.ops.logprobs import TILE_ELEMENTS, tiled_token_logprobs, token_logprobs

NONE_BANNED = torch.zeros(4, dtype=torch.bool)
LAST_BANNED = torch.tensor([False, False, False, True])


def test_logits_are_divided_by_the_temperature():
    logits = torch.tensor([[math.log(4.0), 0.0]])
    logprobs, entropy = token_logprobs(
        logits, torch.tensor([0]), temperature=2.0, banned=torch.zeros(2, dtype=torch.bool)
    )
    p = 2 / 3
    assert logprobs.item() == pytest.approx(math.log(p))
    assert entropy.item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))


def test_banned_ids_get_no_probability():
    logits = torch.tensor([[0.0, 0.0, 0.0, 50.0]]).repeat(4, 1)
    logprobs, entropy = token_logprobs(logits, torch.arange(4), temperature=1.0, banned=LAST_BANNED)
    assert logprobs[:3].tolist() == pytest.approx([-math.log(3)] * 3)
    assert logprobs[3].item() == -math.inf
    assert entropy.tolist() == pytest.approx([math.log(3)] * 4)


def test_rows_may_have_any_number_of_axes():
    logits = torch.randn(2, 3, 4)
    tokens = torch.randint(4, (2, 3))
    logprobs, entropy = token_logprobs(logits, tokens, temperature=0.7, banned=NONE_BANNED)
    flat, flat_entropy = token_logprobs(logits.view(6, 4), tokens.view(6), temperature=0.7, banned=NONE_BANNED)
    assert torch.equal(logprobs.view(6), flat)
    assert torch.equal(entropy.view(6), flat_entropy)


@pytest.mark.parametrize("token", range(4))
def test_gradients_are_finite_with_banned_ids(token):
    logits = torch.randn(1, 4, requires_grad=True)
    logprobs, _ = token_logprobs(logits, torch.tensor([token]), temperature=1.0, banned=LAST_BANNED)
    logprobs.sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 3] == 0


def test_gradient_is_the_score_function():
    logits = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    logprobs, _ = token_logprobs(logits, torch.tensor([1]), temperature=2.0, banned=LAST_BANNED)
    logprobs.sum().backward()
    allowed = (logits.detach()[0, :3] / 2).softmax(-1)
    expected = (torch.tensor([0.0, 1.0, 0.0]) - allowed) / 2
    torch.testing.assert_close(logits.grad[0, :3], expected)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_low_precision_is_computed_in_float32(dtype, expected):
    logits = torch.randn(5, 4).to(dtype)
    tokens = torch.randint(4, (5,))
    logprobs, entropy = token_logprobs(logits, tokens, temperature=0.9, banned=LAST_BANNED)
    wide, wide_entropy = token_logprobs(logits.to(expected), tokens, temperature=0.9, banned=LAST_BANNED)
    assert logprobs.dtype == entropy.dtype == expected
    assert torch.equal(logprobs, wide)
    assert torch.equal(entropy, wide_entropy)


def test_logits_of_minus_infinity_leave_the_entropy_finite():
    logits = torch.tensor([[0.0, 0.0, -math.inf, -math.inf]])
    _, entropy = token_logprobs(logits, torch.tensor([0]), temperature=1.0, banned=NONE_BANNED)
    assert entropy.item() == pytest.approx(math.log(2))


def test_the_entropy_carries_no_gradient():
    _, entropy = token_logprobs(
        torch.randn(1, 4, requires_grad=True), torch.tensor([0]), temperature=1.0, banned=NONE_BANNED
    )
    assert not entropy.requires_grad


@pytest.mark.parametrize("tile_elements", [1000, 8])
def test_the_gradient_of_the_entropy_is_that_of_finite_differences_where_it_is_asked_for(tile_elements):
    def entropies(logits):
        return tiled_token_logprobs(
            torch.nn.Identity(),
            logits,
            torch.tensor([0, 2, 1]),
            temperature=0.7,
            banned=LAST_BANNED,
            entropy_gradient=True,
            tile_elements=tile_elements,
        )[1]

    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(entropies, (logits,))
    (gradient,) = torch.autograd.grad(entropies(logits).sum(), logits)
    assert gradient.isfinite().all()
    assert gradient[:, :3].abs().min() > 1e-3
    assert not gradient[:, 3].any()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_and_finite_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature is"):
        token_logprobs(torch.zeros(1, 4), torch.tensor([0]), temperature=temperature, banned=NONE_BANNED)


def scored(tile_elements, num_rows=10):
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(6, 4, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.randn(4, 6, generator=generator))
    calls = []
    head.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    states = torch.randn(num_rows, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(3, (num_rows,), generator=generator)
    logprobs, entropy = tiled_token_logprobs(
        head, states, tokens, temperature=0.7, banned=LAST_BANNED, tile_elements=tile_elements
    )
    forward_calls = list(calls)
    (logprobs * torch.arange(num_rows)).sum().backward()
    return (logprobs, entropy, states.grad, head.weight.grad), forward_calls, calls[len(forward_calls) :]


@pytest.mark.parametrize(("tile_elements", "rows"), [(12, [3, 3, 3, 1]), (20, [5, 5]), (1, [1] * 10)])
def test_tiles_of_rows_equal_all_rows_at_once_and_hold_no_more_logits(tile_elements, rows):
    expected, [whole], again = scored(1000)
    assert whole == 10
    assert again == []
    found, forward, recomputed = scored(tile_elements)
    assert forward == rows
    assert sorted(recomputed) == sorted(rows)
    for ours, want in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, want, rtol=0, atol=1e-12)
        assert want.abs().max() > 0.1


@pytest.mark.parametrize("tile_elements", [12, 1000])
def test_the_entropy_of_tiles_carries_no_gradient_either(tile_elements):
    (logprobs, entropy, *_), _, _ = scored(tile_elements)
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_a_tile_that_holds_all_rows_is_computed_once():
    assert scored(40)[1:] == ([10], [])


def test_a_tile_is_256_mib_of_float32_by_default():
    assert TILE_ELEMENTS * torch.float32.itemsize == 256 * 2**20
    assert inspect.signature(tiled_token_logprobs).parameters["tile_elements"].default == TILE_ELEMENTS


def test_rows_without_a_token_are_refused_also_where_shapes_are_not_checked():
    with pytest.raises(ValueError, match="zip"):
        inspect.unwrap(tiled_token_logprobs)(
            torch.nn.Identity(),
            torch.zeros(5, 4),
            torch.zeros(2, dtype=torch.long),
            temperature=1.0,
            banned=NONE_BANNED,
            tile_elements=8,
        )


def test_no_row_is_no_logprob():
    found, _, _ = scored(12, num_rows=0)
    assert [len(tensor) for tensor in found[:3]] == [0, 0, 0]
