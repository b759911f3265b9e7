"""Log-probabilities and entropies summed out in NumPy float64, without a stabilized softmax."""

import numpy as np
import pytest
import torch

from lightning_mmrl.ops.logprobs import token_logprobs


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_token_logprobs(temperature, dtype, tolerance):
    rng = np.random.default_rng(3)
    logits, tokens = rng.normal(size=(6, 11)) * 3, rng.integers(0, 9, size=6)
    banned = np.arange(11) >= 9
    logprobs, entropy = token_logprobs(
        torch.tensor(logits, dtype=dtype), torch.tensor(tokens), temperature=temperature, banned=torch.tensor(banned)
    )
    weights = np.exp(logits / temperature) * ~banned
    p = weights / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(logprobs.numpy(), np.log(p[np.arange(6), tokens]), rtol=tolerance, atol=tolerance)
    expected = [-sum(x * np.log(x) for x in row if x > 0) for row in p]
    np.testing.assert_allclose(entropy.numpy(), expected, rtol=tolerance, atol=tolerance)


def test_agrees_with_torch_distributions():
    logits = torch.randn(5, 8, dtype=torch.float64)
    tokens = torch.randint(8, (5,))
    logprobs, entropy = token_logprobs(logits, tokens, temperature=1.0, banned=torch.zeros(8, dtype=torch.bool))
    reference = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(logprobs, reference.log_prob(tokens))
    torch.testing.assert_close(entropy, reference.entropy())
