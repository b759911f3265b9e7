"""Log-probabilities of given tokens, with the project's one convention for temperature and banned ids."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TILE_ELEMENTS = 2**26
"""Logits held in memory at once: 256 MiB in float32."""


def token_logprobs(
    logits: Float[Tensor, "*rows V"],
    tokens: Int[Tensor, "*rows"],
    *,
    temperature: float,
    banned: Bool[Tensor, " V"],
    entropy_gradient: bool = False,
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"]]:
    """Log-probability of each token and entropy of its distribution, in nats.

    log p(v) = log_softmax(logits / T)(v) with the logits of banned ids at minus infinity, before any top-p or top-k;
    entropy H = -sum_v p(v) log p(v) with 0 log 0 = 0.

    Nothing is shifted: `logits[..., :]` predict `tokens[...]`. bfloat16 and float16 logits are computed in float32;
    float64 logits stay float64. A banned token gets minus infinity. The entropy carries a gradient only with
    `entropy_gradient`; without it, the backward pass needs two float32 copies of the logits less.

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
    table = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    table = table.masked_fill_(banned, -torch.inf).log_softmax(-1)
    chosen = table.gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1)
    if entropy_gradient:
        return chosen, -(table.exp() * table.masked_fill(table == -torch.inf, 0.0)).sum(-1)
    # The same numbers in place: a vocabulary's width of memory for each row is not held three more times.
    table = table.detach()
    products = table.exp().mul_(table).masked_fill_(table == -torch.inf, 0.0)
    return chosen, -products.sum(-1)


def tiled_token_logprobs(
    head: Callable[[Tensor], Tensor],
    states: Float[Tensor, "n D"],
    tokens: Int[Tensor, " n"],
    *,
    temperature: float,
    banned: Bool[Tensor, " V"],
    entropy_gradient: bool = False,
    tile_elements: int = TILE_ELEMENTS,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """`token_logprobs(head(states), tokens)` without ever holding all n * V logits.

    Rows go through the head in tiles of at most `tile_elements` logits; the backward pass computes each tile's logits
    again. If one tile is enough, nothing is computed twice.

    >>> scored = {"temperature": 1.0, "banned": torch.tensor([False, False]), "tile_elements": 2}
    >>> tiled_token_logprobs(torch.nn.Identity(), torch.zeros(3, 2), torch.tensor([0, 1, 0]), **scored)[0]
    tensor([-0.6931, -0.6931, -0.6931])
    """

    def score(rows: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(rows)
        return token_logprobs(logits, chosen, temperature=temperature, banned=banned, entropy_gradient=entropy_gradient)

    size = max(1, tile_elements // len(banned))
    if len(states) <= size:
        return score(states, tokens)
    tiles = zip(states.split(size), tokens.split(size), strict=True)
    scored = [checkpoint(score, rows, chosen, use_reentrant=False) for rows, chosen in tiles]
    return torch.cat([logprobs for logprobs, _ in scored]), torch.cat([entropy for _, entropy in scored])
