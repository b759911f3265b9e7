"""Estimates of the divergence between two policies from the log-probabilities of sampled tokens."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.ops.masked import masked_mean

MAX_LOG_RATIO = 20.0
"""Where log-ratios are clamped before an exponential, so that one runaway token cannot overflow."""


def k1(
    logprobs: Float[Tensor, "N C"], reference_logprobs: Float[Tensor, "N C"], mask: Bool[Tensor, "N C"]
) -> Float[Tensor, "N C"]:
    """k1 estimate of KL(policy || reference) at each token of the policy: log p - log p_ref.

    Unbiased, and negative for some tokens (J. Schulman, 2020, http://joschu.net/blog/kl-approx.html). Its gradient is
    the score function, whose mean is zero. So k1 only adds noise in a loss, but is right in a reward
    (arXiv:2506.09477). Zero where `mask` is False.

    >>> k1(torch.tensor([[-1.0]]), torch.tensor([[-1.5]]), torch.ones(1, 1, dtype=torch.bool))
    tensor([[0.5000]])
    """
    return torch.where(mask, logprobs - reference_logprobs, torch.zeros_like(logprobs))


def k2(
    logprobs: Float[Tensor, "N C"], reference_logprobs: Float[Tensor, "N C"], mask: Bool[Tensor, "N C"]
) -> Float[Tensor, "N C"]:
    """k2 estimate of KL(policy || reference) at each token of the policy: (log p - log p_ref)^2 / 2.

    Biased as a value. The mean of its gradient, (log p - log p_ref) * grad log p, is the gradient of the divergence, so
    k2 is right in a loss (arXiv:2510.01555). Zero where `mask` is False.

    >>> k2(torch.tensor([[-1.0]]), torch.tensor([[-1.5]]), torch.ones(1, 1, dtype=torch.bool))
    tensor([[0.1250]])
    """
    return k1(logprobs, reference_logprobs, mask).square() / 2


def k3(
    logprobs: Float[Tensor, "N C"], reference_logprobs: Float[Tensor, "N C"], mask: Bool[Tensor, "N C"]
) -> Float[Tensor, "N C"]:
    """k3 estimate of KL(policy || reference) at each token of the policy: d - 1 - log d with d = p_ref / p.

    Unbiased and never negative (J. Schulman, 2020; GRPO, arXiv:2402.03300, eq. 4). Its gradient, (1 - d) * grad log p,
    is the gradient of the divergence only to first order in log d. Zero where `mask` is False.

    **Deviations**: log d is clamped to +-20; a token beyond the clamp gets no gradient.

    >>> k3(torch.tensor([[-1.0]]), torch.tensor([[-1.5]]), torch.ones(1, 1, dtype=torch.bool))
    tensor([[0.1065]])
    """
    log_d = (-k1(logprobs, reference_logprobs, mask)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_d.expm1() - log_d


def approx_kl(
    logprobs: Float[Tensor, "N C"], old_logprobs: Float[Tensor, "N C"], mask: Bool[Tensor, "N C"]
) -> Float[Tensor, ""]:
    """Mean of the k3 estimator of KL(old || new) over the tokens where `mask` is True, in nats per token.

    k3 = exp(d) - 1 - d with d = logprobs - old_logprobs, for tokens sampled from the old policy; never negative and
    unbiased (J. Schulman, 2020, http://joschu.net/blog/kl-approx.html). Zero if no token counts.

    >>> approx_kl(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.0, -2.5]]), torch.ones(1, 2, dtype=torch.bool))
    tensor(0.0744)
    """
    difference = torch.where(mask, logprobs - old_logprobs, torch.zeros_like(logprobs))
    return masked_mean(difference.expm1() - difference, mask)
