import numpy as np
import torch

from lightning_mmrl.rollout.sampling import group_seeds, row_seed, sample_tokens, uniform_noise


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
