"""Generalized advantages do not depend on the other completions of a batch."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.ops.gae import generalized_advantages


@st.composite
def given_tokens(draw):
    rows, width = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rewards, values = torch.randn(2, rows, width, generator=generator, dtype=torch.float64)
    settings = {"gamma": draw(st.floats(0.1, 1)), "gae_lambda": draw(st.floats(0, 1))}
    return rewards, values, torch.arange(width) < torch.tensor(lengths)[:, None], settings


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@given(given_tokens(), st.integers(0, 6), st.integers(1, 3))
def test_padding_anywhere_changes_nothing(tokens, place, extra):
    """Also on the left and in the middle, whatever is stored there."""
    rewards, values, mask, settings = tokens
    garbage = torch.full((len(mask), extra), torch.nan, dtype=torch.float64)

    def padded(tensor, filler):
        return torch.cat([tensor[:, :place], filler, tensor[:, place:]], 1)

    nothing = torch.zeros_like(garbage, dtype=torch.bool)
    found = generalized_advantages(padded(rewards, garbage), padded(values, garbage), padded(mask, nothing), **settings)
    expected = generalized_advantages(rewards, values, mask, **settings)
    assert_close(found, [padded(each, torch.zeros_like(garbage)) for each in expected])


@given(given_tokens(), st.randoms())
def test_rows_do_not_depend_on_their_order(tokens, random):
    rewards, values, mask, settings = tokens
    order = random.sample(range(len(mask)), len(mask))
    found = generalized_advantages(rewards[order], values[order], mask[order], **settings)
    assert_close(found, [each[order] for each in generalized_advantages(rewards, values, mask, **settings)])


@given(given_tokens(), st.floats(-3, 3))
def test_it_is_linear_and_knows_no_reward_of_the_past(tokens, scale):
    rewards, values, mask, settings = tokens
    expected = generalized_advantages(rewards, values, mask, **settings)
    assert_close(
        generalized_advantages(scale * rewards, scale * values, mask, **settings), [scale * each for each in expected]
    )
    other = rewards.clone()
    other[:, 0] += 5
    changed = generalized_advantages(other, values, mask, **settings)
    assert torch.equal(changed[0][:, 1:], expected[0][:, 1:])
    assert torch.equal(changed[0][:, 0] != expected[0][:, 0], mask[:, 0])


@given(given_tokens())
def test_perfect_values_leave_no_advantage(tokens):
    """Of returns without noise: a value that knows what comes is never surprised."""
    rewards, _, mask, settings = tokens
    _, returns = generalized_advantages(
        rewards, torch.zeros_like(rewards), mask, gamma=settings["gamma"], gae_lambda=1.0
    )
    found, again = generalized_advantages(rewards, returns, mask, **settings)
    assert_close([found, again], [torch.zeros_like(found), returns])
