"""Advantages of single tokens from rewards and values, by generalized advantage estimation."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def generalized_advantages(
    rewards: Float[Tensor, "N C"],
    values: Float[Tensor, "N C"],
    mask: Bool[Tensor, "N C"],
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C"]]:
    """Advantages A_t = sum_k (gamma * gae_lambda)^k delta_{t+k}, and returns A_t + V_t (arXiv:1506.02438, eq. 16).

    delta_t = r_t + gamma * V_{t+1} - V_t (eq. 9), where V_t is the value of the state that token t is sampled in. The
    value after a completion's last token is 0, whether it ended or was truncated, as in OpenRLHF, LMM-R1 and verl. The
    reward judges the text as it is, and no text will follow; a bootstrapped value would reward truncation.

    Tokens where `mask` is False are skipped, whatever is stored there; both results are exactly zero there.

    >>> rewards, values = torch.tensor([[0.0, 0.0, 1.0, 9.0]]), torch.tensor([[0.5, 0.25, 0.5, 9.0]])
    >>> mask = torch.tensor([[True, True, True, False]])
    >>> generalized_advantages(rewards, values, mask, gamma=1.0, gae_lambda=1.0)
    (tensor([[0.5000, 0.7500, 0.5000, 0.0000]]), tensor([[1., 1., 1., 0.]]))
    >>> generalized_advantages(rewards, values, mask, gamma=1.0, gae_lambda=0.0)[0]
    tensor([[-0.2500,  0.2500,  0.5000,  0.0000]])
    """
    rewards, values = (torch.where(mask, given, torch.zeros_like(given)) for given in (rewards, values))
    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])
    for step in reversed(range(mask.shape[1])):
        there = mask[:, step]
        error = rewards[:, step] + gamma * next_value - values[:, step]
        advantage = torch.where(there, error + gamma * gae_lambda * advantage, advantage)
        next_value = torch.where(there, values[:, step], next_value)
        advantages[:, step] = torch.where(there, advantage, advantages[:, step])
    return advantages, advantages + values
