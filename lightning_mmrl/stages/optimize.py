"""The optimizer step of an RL iteration: minibatches, a global loss denominator, and sums for metrics."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.ops.kl import approx_kl
from lightning_mmrl.ops.masked import masked_sum
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.protocols.tensors import Aggregation, Correction, PolicyLoss
from lightning_mmrl.settings.algorithm import UpdateSettings
from lightning_mmrl.stages.experience import Experience
from lightning_mmrl.stages.mismatch import (
    MEASURE,
    MISMATCH_MAXIMA,
    MISMATCH_SUMS,
    mismatch_maxima,
    mismatch_sums,
)
from lightning_mmrl.types.batches import LossInputs, LossOutput, PolicyOutput, ScoringBatch

ScoredBatches = Iterable[tuple[ScoringBatch, Int[Tensor, " n"] | None]]
"""Batches with their rows of the rollout; a dummy batch has none. See `microbatches.scoring_batches`."""

SUMS = ("loss", "tokens", "clipped", "clipped_low", "clipped_high", "kl", "entropy", "ratio", *MISMATCH_SUMS)
"""Sums over the tokens of an optimizer step; the divergence from a reference policy joins them if there is one."""
MAXIMA = ("ratio_max", *MISMATCH_MAXIMA)
"""Maxima over the tokens of an optimizer step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The loss of one iteration.

    Attributes:
        loss: The policy loss of each token.
        aggregation: Reduces token losses, and counts their denominator.
        correction: Weights of the policy losses; the KL and entropy terms are not weighted. None for none.
        ranks: The processes whose tokens are reduced together.
        kl: The divergence from the reference policy, if the experience has the reference's log-probabilities.
        kl_coefficient: The coefficient of the divergence in the loss; 0 if it is in the reward, or only reported.
        entropy_coefficient: The coefficient of the entropy bonus.
    """

    loss: PolicyLoss
    aggregation: Aggregation
    correction: Correction | None = None
    ranks: Ranks = ALONE
    kl: KLPenalty | None = None
    kl_coefficient: float = 0.0
    entropy_coefficient: float = 0.0

    @property
    def regularized(self) -> bool:
        """True if completions without an advantage have a gradient as well."""
        return self.kl_coefficient != 0 or self.entropy_coefficient != 0


def plan_minibatches(
    num_prompts: int,
    settings: UpdateSettings,
    generator: torch.Generator,
    ranks: Ranks = ALONE,
    places: Sequence[int] | None = None,
) -> list[list[int]]:
    """This rank's prompts of each optimizer step, for all epochs, by their rows.

    The prompts of all ranks, equally many on each, are split together. So every step has the prompts that it would have
    in one process, and each prompt stays on its rank. In a step, a rank may have more prompts than another, or none.

    Args:
        num_prompts: Prompts of this rank.
        settings: Epochs and minibatches.
        generator: Shuffles the prompts in each epoch if there are several minibatches; the same on all ranks.
        ranks: Who trains together.
        places: Where this rank's prompts stand among those of all ranks; None: one rank after the other.
    """
    total, count = num_prompts * ranks.world_size, settings.num_minibatches
    if places is None:
        places = range(num_prompts * ranks.rank, num_prompts * (ranks.rank + 1))
    rows = {place: row for row, place in enumerate(places)}
    plans = []
    for _ in range(settings.num_epochs):
        order = list(range(total))
        if count > 1:
            order = torch.randperm(total, generator=generator).tolist()
        for part in range(count):
            chosen = order[part * total // count : (part + 1) * total // count]
            plans.append([rows[place] for place in chosen if place in rows])
    return plans


def groups_with_gradient(experience: Experience, *, regularized: bool) -> list[bool]:
    """Tells for each prompt whether its group can have a gradient, and so must be scored.

    A group whose advantages are all zero has an exactly zero gradient under a loss without KL or entropy term: such a
    group counts in the denominator and is not scored. With `regularized`, the loss has such a term, or a critic learns.
    """
    trainable = experience.trainable
    return (trainable if regularized else trainable & experience.has_signal).any(-1).tolist()


def rollout_logprobs(policy: Policy, experience: Experience, batches: ScoredBatches) -> Float[Tensor, "N C"]:
    """Log-probabilities of the rollout under a policy that is not updated, zero where nothing counts.

    The policy is the one before its first update, or the reference.
    """
    return fixed_logprobs(policy, torch.zeros_like(experience.rollout.sampler_logprobs), batches)


def fixed_logprobs(policy: Policy, zeros: Float[Tensor, "N C"], batches: ScoredBatches) -> Float[Tensor, "N C"]:
    """Log-probabilities under a policy that is not updated; `zeros` has their shape and stands where nothing counts."""
    found = zeros
    with torch.no_grad():
        for batch, rows in batches:
            logprobs = policy(batch).logprobs
            if rows is not None:
                found = found.to(logprobs.dtype).index_add(0, rows, logprobs)
    return found


def set_learning_rates(
    optimizers: Sequence[LightningOptimizer], schedulers: Sequence[LambdaLR], factor: float
) -> float:
    """Sets the learning rates of optimizers to those of their schedules times a factor; returns the first one's."""
    for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
        for group, rate in zip(optimizer.param_groups, _learning_rates(scheduler), strict=True):
            group["lr"] = rate * factor
    return optimizers[0].param_groups[0]["lr"]


def accumulate_loss(
    policy: Policy,
    experience: Experience,
    minibatch: Sequence[int],
    batches: ScoredBatches,
    *,
    objective: Objective,
    backward: Callable[[Tensor], None],
) -> dict[str, Tensor]:
    """Adds the gradient of one minibatch, microbatch by microbatch, and returns its statistics.

    The denominator is counted over the whole minibatch and all ranks first, so that the split into microbatches and
    ranks does not matter; the gradients of all ranks add up to the gradient of one process, and the statistics are of
    all ranks. They include the loss's `denominator`, so that the losses of several minibatches can be averaged.

    Args:
        policy: The policy that is updated. If the experience has no old log-probabilities, the policy's own are used,
            detached.
        experience: The whole rollout.
        minibatch: Prompts that count in the denominator.
        batches: The minibatch's prompts that have a gradient, in batches to score.
        objective: The loss.
        backward: Takes the loss of a microbatch.
    """
    ranks = objective.ranks
    denominator = ranks.sum(_denominator(objective.aggregation, experience, minibatch))
    totals: dict[str, Tensor] = {}
    largest = {name: torch.zeros((), device=denominator.device) for name in MAXIMA}
    for batch, rows in batches:
        mask = batch.completion_mask
        if rows is None:
            backward(masked_sum(policy(batch).logprobs, torch.zeros_like(mask)))
            continue
        output = policy(batch, entropy_gradient=objective.entropy_coefficient != 0)
        old = output.logprobs.detach() if experience.old_logprobs is None else experience.old_logprobs[rows]
        inputs = LossInputs(
            logprobs=output.logprobs,
            old_logprobs=old,
            advantages=experience.advantages[rows],
            completion_mask=mask,
        )
        losses, sampler = objective.loss(inputs), experience.rollout.sampler_logprobs[rows]
        correction = (objective.correction or MEASURE)(inputs.old_logprobs, sampler, mask)
        weights = 1.0 if objective.correction is None else correction.weights
        divergence = _divergence(objective, inputs, experience.reference_logprobs, rows)
        token_losses = _regularized(objective, losses.token_losses * weights, divergence, output)
        if experience.weights is not None:
            token_losses = token_losses * experience.weights.flatten()[rows][:, None]
        value = objective.aggregation.reduce(token_losses, mask, denominator)
        backward(value)
        step = {"loss": value.detach()} | _token_sums(inputs, losses, output)
        step |= mismatch_sums(correction, inputs, sampler)
        if divergence is not None:
            step["reference_kl"] = masked_sum(divergence.detach(), mask)
        totals = {name: totals.get(name, 0.0) + amount for name, amount in step.items()}
        most = {"ratio_max": torch.where(mask, losses.ratios.detach(), 0.0).max()}
        most |= mismatch_maxima(correction, inputs, sampler)
        largest = {name: torch.maximum(largest[name], value.to(largest[name].dtype)) for name, value in most.items()}
    names = (*SUMS, "reference_kl") if experience.reference_logprobs is not None else SUMS
    totals = {name: totals.get(name, torch.zeros_like(denominator)) for name in names}
    return _over_ranks(totals, largest, ranks) | {"denominator": denominator}


def _denominator(aggregation: Aggregation, experience: Experience, prompts: Sequence[int]) -> Float[Tensor, ""]:
    """The aggregation's denominator, each completion counted as often as it is trained on.

    A denominator is additive, so completions of equal weight are counted together.
    """
    mask = experience.loss_mask(prompts)
    if experience.weights is None:
        return aggregation.denominator(mask)
    weights = experience.weights[list(prompts)].flatten()
    total = aggregation.denominator(torch.zeros_like(mask))
    for weight in weights.unique():
        total = total + weight * aggregation.denominator(mask & (weights == weight)[:, None])
    return total


def _learning_rates(scheduler: LambdaLR) -> list[float]:
    """The learning rate that a scheduler gives each group of parameters now; under a budget it changes by itself."""
    step = scheduler.last_epoch
    return [float(base) * factor(step) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]


def _divergence(
    objective: Objective, inputs: LossInputs, reference_logprobs: Tensor | None, rows: Tensor
) -> Float[Tensor, "N C"] | None:
    """The estimate of the divergence at each token, or None without a reference."""
    if objective.kl is None or reference_logprobs is None:
        return None
    reference = reference_logprobs[rows].to(inputs.logprobs.dtype)
    return objective.kl(inputs.logprobs, inputs.old_logprobs, reference, inputs.completion_mask)


def _regularized(
    objective: Objective, token_losses: Tensor, divergence: Tensor | None, output: PolicyOutput
) -> Float[Tensor, "N C"]:
    """The token losses with their KL and entropy terms."""
    if objective.kl_coefficient and divergence is not None:
        token_losses = token_losses + objective.kl_coefficient * divergence
    if objective.entropy_coefficient:
        token_losses = token_losses - objective.entropy_coefficient * output.entropy
    return token_losses


def _token_sums(inputs: LossInputs, losses: LossOutput, output: PolicyOutput) -> dict[str, Tensor]:
    """The sums over a microbatch's tokens from which means are reported."""
    mask, ratios = inputs.completion_mask, losses.ratios.detach()
    clipped, count = losses.clipped & mask, mask.sum()
    return {
        "tokens": count,
        "clipped": clipped.sum(),
        "clipped_low": (clipped & (ratios < 1)).sum(),
        "clipped_high": (clipped & (ratios > 1)).sum(),
        "kl": approx_kl(inputs.logprobs.detach(), inputs.old_logprobs, mask) * count,
        "entropy": masked_sum(output.entropy.detach(), mask),
        "ratio": masked_sum(ratios, mask),
    }


def _over_ranks(totals: dict[str, Tensor], largest: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Sums over the ranks, and the largest values of any of them."""
    if ranks.world_size == 1:
        return totals | largest
    values = ranks.sum(torch.stack([total.double() for total in totals.values()]))
    parts = ranks.gather({name: float(value) for name, value in largest.items()})
    most = {name: torch.tensor(max(part[name] for part in parts)) for name in largest}
    return dict(zip(totals, values, strict=True)) | most
