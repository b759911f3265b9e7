import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from lightning_mmrl.rollout.sampling import group_seeds, nucleus, row_seed, sample_tokens, uniform_noise


def test_frequencies_follow_the_probabilities():
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3])
    noise = uniform_noise([1], 20_000)[0]
    tokens = sample_tokens(probabilities.log().expand(len(noise), -1), noise)
    shares = torch.bincount(tokens, minlength=4) / len(noise)
    # Standard error of the largest share is 0.0035; four of them.
    torch.testing.assert_close(shares, probabilities, rtol=0, atol=0.014)  # see the comment above
    assert shares[1] == 0


def test_the_extremes_of_the_noise_never_choose_a_token_without_probability():
    logprobs = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).log().expand(3, -1)
    noise = torch.tensor([0.0, 0.5, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert sample_tokens(logprobs, noise).tolist() == [1, 3, 3]


def test_seeds_are_distinct_and_stable():
    seeds = group_seeds(0, 1, ["a", "b"], 8) + group_seeds(0, 2, ["a", "b"], 8) + group_seeds(1, 1, ["a", "b"], 8)
    flat = [seed for group in seeds for seed in group]
    assert len(set(flat)) == len(flat)
    assert row_seed(0, 1, "a", 3) == seeds[0][3]


BANNED = [3, 17, 40]
TEMPERATURE = 0.7


def both_ways(logits, top_p, temperature=TEMPERATURE):
    """Probabilities by our rule, at a temperature, and by transformers' chain of processors, at the right one."""
    processors = [TemperatureLogitsWarper(TEMPERATURE), TopPLogitsWarper(top_p)]
    chain = LogitsProcessorList([SuppressTokensLogitsProcessor(BANNED), *processors])
    banned = torch.isin(torch.arange(logits.shape[1]), torch.tensor(BANNED))
    ours = (logits / temperature).masked_fill(banned, -torch.inf).log_softmax(-1)
    return nucleus(ours, top_p).softmax(-1), chain(torch.zeros(len(logits), 1).long(), logits).softmax(-1)


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999, 1.0])
def test_the_nucleus_is_that_of_transformers(top_p):
    logits = 4 * torch.randn(200, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = both_ways(logits, top_p)
    assert torch.equal(ours > 0, theirs > 0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    sizes = (ours > 0).sum(-1)
    assert sizes.min() >= 1
    assert (sizes == 47).all() == (top_p == 1)


def test_control_a_temperature_that_is_a_tenth_off():
    logits = 4 * torch.randn(200, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = both_ways(logits, 0.9, temperature=1.1 * TEMPERATURE)
    assert (ours - theirs).abs().max() > 0.01


def test_the_likeliest_token_stays_even_among_equals():
    kept = nucleus(torch.zeros(2, 8).log_softmax(-1), 1e-3).isfinite()
    assert kept.sum(-1).tolist() == [1, 1]


def test_tokens_outside_the_nucleus_are_never_sampled():
    logprobs = torch.tensor([[0.05, 0.5, 0.05, 0.3, 0.1]]).log().expand(2000, -1)
    noise = uniform_noise([7], 2000)[0]
    assert set(sample_tokens(nucleus(logprobs, 0.75), noise).tolist()) == {1, 3}
    assert set(sample_tokens(logprobs, noise).tolist()) == {0, 1, 2, 3, 4}
    # The two share the probability as before: 5 to 3, with a standard error of 0.011.
    share = (sample_tokens(nucleus(logprobs, 0.75), noise) == 1).double().mean()
    assert abs(float(share) - 0.625) < 0.044  # four of them


@pytest.mark.parametrize("row", [[torch.nan] * 3, [0.0, torch.nan, 0.0], [torch.inf, 0.0, 0.0], [-torch.inf] * 3])
def test_a_row_that_is_not_finite_gives_a_token_that_exists(row):
    logprobs = torch.tensor([row, [-1.0, -1.0, -1.0]])
    chosen = sample_tokens(logprobs, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert 0 <= int(chosen[0]) < 3
    assert int(chosen[1]) == 1
