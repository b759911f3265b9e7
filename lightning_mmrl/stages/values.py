"""Rewards, values and advantages of single tokens, and the loss that a critic learns from."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.value_clip import ValueClip
from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.ops.gae import generalized_advantages
from lightning_mmrl.ops.masked import masked_sum
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.settings.algorithm import CriticSettings
from lightning_mmrl.stages.experience import Experience
from lightning_mmrl.stages.optimize import ScoredBatches
from lightning_mmrl.types.batches import ScoringBatch

MIN_VARIANCE = 1e-8
"""Smallest variance that whitening divides by, as in OpenRLHF."""

ROUNDING = 1e-10
"""Ratio of variance to squared mean below which numbers count as equal; rounding of float32 gives about 1e-14."""

ValueFunction = Callable[[ScoringBatch], Tensor]
"""Gives the values [N, C] of a scoring batch, as a `models.critic.Critic` does."""


def token_rewards(experience: Experience, kl: KLPenalty, coefficient: float) -> Float[Tensor, "N C"]:
    """A completion's reward at its last token, minus coefficient times the divergence at each of its tokens.

    The divergence is included only if the penalty belongs in the reward; it is computed at the weights that sampled
    (InstructGPT, arXiv:2203.02155, eq. 2; LMM-R1 takes k1). Zero for completions that do not count.
    """
    mask, scores = experience.loss_mask(), experience.scores
    next_counted = torch.zeros_like(mask)
    next_counted[:, :-1] = mask[:, 1:]
    totals = torch.where(scores.valid, scores.rewards, torch.zeros_like(scores.rewards)).reshape(-1, 1)
    rewards = torch.where(mask & ~next_counted, totals, torch.zeros_like(totals))
    old, reference = experience.old_logprobs, experience.reference_logprobs
    if not kl.in_reward or old is None or reference is None:
        return rewards
    return rewards - coefficient * kl(old, old, reference.to(old.dtype), mask)


def with_advantages(
    experience: Experience,
    rewards: Float[Tensor, "N C"],
    values: Float[Tensor, "N C"],
    *,
    settings: CriticSettings,
    ranks: Ranks,
) -> Experience:
    """The experience with values, returns and advantages of its tokens."""
    mask = experience.loss_mask()
    advantages, returns = generalized_advantages(
        rewards.to(values.dtype), values, mask, gamma=settings.gamma, gae_lambda=settings.gae_lambda
    )
    if settings.whiten:
        advantages = whitened(advantages, mask, ranks)
    return replace(experience, advantages=advantages, old_values=values, returns=returns)


def whitened(advantages: Float[Tensor, "N C"], mask: Bool[Tensor, "N C"], ranks: Ranks) -> Float[Tensor, "N C"]:
    """(A - mean) / sqrt(max(variance, 1e-8)) over the True tokens of all ranks; zero elsewhere.

    As in OpenRLHF and LMM-R1, the variance is divided by the number of tokens. Advantages that are all equal become
    zero.
    """
    wide = advantages.cpu().double()
    there = mask.cpu()
    count = ranks.sum(there.sum().double()).clamp(min=1)
    mean = ranks.sum(masked_sum(wide, there)) / count
    variance = ranks.sum(masked_sum((wide - mean).square(), there)) / count
    scaled = (wide - mean) * variance.clamp(min=MIN_VARIANCE).rsqrt()
    return torch.where(mask, scaled.to(advantages), torch.zeros_like(advantages))


def score_values(critic: ValueFunction, experience: Experience, batches: ScoredBatches) -> Float[Tensor, "N C"]:
    """Values of a critic that is not updated, at all tokens that count; zero elsewhere."""
    found = torch.zeros_like(experience.rollout.sampler_logprobs)
    with torch.no_grad():
        for batch, rows in batches:
            values = critic(batch)
            if rows is not None:
                found = found.to(values.dtype).index_add(0, rows, values)
    return found


def accumulate_value_loss(
    critic: ValueFunction,
    experience: Experience,
    minibatch: Sequence[int],
    batches: ScoredBatches,
    *,
    loss: ValueClip,
    ranks: Ranks,
    backward: Callable[[Tensor], None],
) -> dict[str, float]:
    """Adds the gradient of the critic's loss of one minibatch, and returns its statistics.

    The loss is the mean over all tokens that count in the minibatch, over its microbatches and all ranks together;
    `value_tokens` is their number.
    """
    old_values, returns, mean = experience.old_values, experience.returns, TokenMean()
    assert old_values is not None
    assert returns is not None
    count = ranks.sum(mean.denominator(experience.loss_mask(minibatch)))
    totals = torch.zeros(2, dtype=torch.float64)
    for batch, rows in batches:
        values = critic(batch)
        if rows is None:
            backward(masked_sum(values, torch.zeros_like(batch.completion_mask)))
            continue
        losses, clipped = loss(values, old_values[rows], returns[rows], batch.completion_mask)
        value = mean.reduce(losses, batch.completion_mask, count)
        backward(value)
        totals += torch.stack([value.detach(), clipped.sum() / count.clamp(min=1)]).cpu().double()
    value_loss, fraction = ranks.sum(totals).tolist()
    return {"value_loss": value_loss, "value_clip_fraction": fraction, "value_tokens": float(count)}


def value_stats(experience: Experience, ranks: Ranks) -> dict[str, float]:
    """Mean value and return at the rollout, and the share of the returns' variance that the values explain.

    The share is 1 - Var(return - value) / Var(return): 1 for a perfect critic, 0 for a constant. It is left out where
    all returns are equal up to rounding.
    """
    assert experience.old_values is not None
    assert experience.returns is not None
    mask = experience.loss_mask().cpu()
    values, returns = experience.old_values.cpu().double(), experience.returns.cpu().double()
    count = ranks.sum(mask.sum().double()).clamp(min=1)

    def mean(amounts: Tensor) -> Tensor:
        return ranks.sum(masked_sum(amounts, mask)) / count

    means = mean(values), mean(returns)
    spread = mean((returns - means[1]).square())
    error = returns - values
    left = mean((error - mean(error)).square())
    stats = {"rollout/value_mean": float(means[0]), "rollout/return_mean": float(means[1])}
    constant = spread <= ROUNDING * means[1].square()
    return stats if constant else stats | {"rollout/explained_variance": float(1 - left / spread)}
