"""Log-probabilities of given tokens under the project's one convention for temperature and banned ids."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def token_logprobs(
    logits: Float[Tensor, "*rows V"],
    tokens: Int[Tensor, "*rows"],
    *,
    temperature: float,
    banned: Bool[Tensor, " V"],
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"]]:
    """Log-probability of each token and entropy of its distribution, in nats.

    log p(v) = log_softmax(logits / T)(v) with the logits of banned ids at minus infinity, before any top-p or top-k;
    entropy H = -sum_v p(v) log p(v) with 0 log 0 = 0.

    Nothing is shifted: `logits[..., :]` are the ones that predict `tokens[...]`. bfloat16 and float16 logits are
    computed in float32, float64 stays. A token that is banned gets minus infinity. The entropy is a statistic and
    carries no gradient, which spares two float32 copies of the logits in the backward pass.

    Raises:
        ValueError: If the temperature is not a positive finite number.

    >>> allowed = torch.tensor([False, False, True])
    >>> token_logprobs(torch.zeros(1, 3), torch.tensor([0]), temperature=1.0, banned=allowed)
    (tensor([-0.6931]), tensor([0.6931]))
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(
            f"temperature is {temperature}; log-probabilities need a positive finite one (for 0, decode greedily)"
        )
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    table = scaled.masked_fill(banned, -torch.inf).log_softmax(-1)
    return table.gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1), _entropy(table.detach())


def _entropy(table: Float[Tensor, "*rows V"]) -> Float[Tensor, "*rows"]:
    return -(table.exp() * table.masked_fill(table == -torch.inf, 0.0)).sum(-1)
