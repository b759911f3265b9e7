"""Estimates of the divergence between two policies from the log-probabilities of sampled tokens."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.ops.masked import masked_mean


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
