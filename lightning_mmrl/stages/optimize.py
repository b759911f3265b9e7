"""The optimizer step of an RL iteration: microbatches, a global loss denominator and what it says of itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from lightning_mmrl.models.policy import Policy
from lightning_mmrl.ops.kl import approx_kl
from lightning_mmrl.ops.masked import masked_sum
from lightning_mmrl.protocols.tensors import Aggregation, PolicyLoss
from lightning_mmrl.types.batches import Experience, LossInputs, ScoringBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSettings:
    """How one rollout is turned into optimizer steps.

    Attributes:
        num_epochs: Passes over the rollout.
        num_minibatches: Optimizer steps per pass; prompts are split evenly.
        prompts_per_microbatch: Prompts whose G completions are scored at once; bounds memory, does not change the loss.
        max_grad_norm: Gradient norm above which gradients are scaled down; infinity never.
    """

    num_epochs: int = 1
    num_minibatches: int = 1
    prompts_per_microbatch: int = 8
    max_grad_norm: float = 1.0

    @property
    def on_policy(self) -> bool:
        """True if every gradient is taken at the weights that sampled: the old log-probs are the policy's own."""
        return self.num_epochs == 1 and self.num_minibatches == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Minibatch:
    """Prompts of one optimizer step: all of them count in the denominator, the live ones are scored."""

    rows: tuple[int, ...]
    live: tuple[int, ...]


def plan_minibatches(experience: Experience, settings: UpdateSettings, generator: torch.Generator) -> list[Minibatch]:
    """Which prompts each optimizer step uses, for all epochs.

    A group whose advantages are all zero has an exactly zero gradient under a loss without KL or entropy term: it
    stays in the denominator and is not scored.
    """
    num_prompts = len(experience.prompts.samples)
    signal = ((experience.advantages != 0) & experience.trainable).any(-1).tolist()
    plans = []
    for _ in range(settings.num_epochs):
        order = list(range(num_prompts))
        if settings.num_minibatches > 1:
            order = torch.randperm(num_prompts, generator=generator).tolist()
        plans += [
            Minibatch(rows=tuple(rows), live=tuple(row for row in rows if signal[row]))
            for rows in _even_split(order, settings.num_minibatches)
        ]
    return plans


def score_old(policy: Policy, experience: Experience, prompts_per_microbatch: int) -> Tensor:
    """Log-probabilities [N, C] of the rollout under the policy before its first update."""
    with torch.no_grad():
        rows = list(range(len(experience.prompts.samples)))
        chunks = _chunks(rows, prompts_per_microbatch)
        return torch.cat([policy(scoring_batch(experience, chunk)).logprobs for chunk in chunks])


def accumulate_loss(
    policy: Policy,
    experience: Experience,
    minibatch: Minibatch,
    *,
    loss: PolicyLoss,
    aggregation: Aggregation,
    old_logprobs: Tensor | None,
    prompts_per_microbatch: int,
    backward: Callable[[Tensor], None],
) -> dict[str, Tensor]:
    """Adds the gradient of one minibatch, microbatch by microbatch, and returns its statistics.

    The denominator is counted over the whole minibatch first, so that the split into microbatches does not matter.
    `old_logprobs` is None when the policy's own, detached, are the old ones.
    """
    denominator = aggregation.denominator(loss_mask(experience, minibatch.rows))
    totals = {
        name: torch.zeros((), device=denominator.device) for name in ("loss", "tokens", "clipped", "kl", "entropy")
    }
    for rows in _chunks(list(minibatch.live), prompts_per_microbatch):
        batch = scoring_batch(experience, rows)
        output = policy(batch)
        mask = loss_mask(experience, rows)
        old = output.logprobs.detach() if old_logprobs is None else old_logprobs[_completion_rows(experience, rows)]
        inputs = LossInputs(
            logprobs=output.logprobs,
            old_logprobs=old,
            advantages=experience.advantages[rows].flatten(),
            completion_mask=mask,
        )
        losses = loss(inputs)
        value = aggregation.reduce(losses.token_losses, mask, denominator)
        backward(value)
        count = mask.sum()
        totals["loss"] += value.detach()
        totals["tokens"] += count
        totals["clipped"] += (losses.clipped & mask).sum()
        totals["kl"] += approx_kl(output.logprobs.detach(), old, mask) * count
        totals["entropy"] += masked_sum(output.entropy.detach(), mask)
    return totals


def loss_mask(experience: Experience, rows: list[int] | tuple[int, ...]) -> Bool[Tensor, "N C"]:
    """Tokens of the given prompts' completions that count: sampled, and of a trainable completion."""
    chosen = _completion_rows(experience, rows)
    return experience.rollout.completion_mask[chosen] & experience.trainable[list(rows)].flatten()[:, None]


def scoring_batch(experience: Experience, rows: list[int]) -> ScoringBatch:
    """The completions of the given prompts, as a policy scores them."""
    chosen = _completion_rows(experience, rows)
    mask = experience.rollout.completion_mask[chosen]
    return ScoringBatch(
        prompts=experience.prompts.select(rows),
        completion_ids=experience.rollout.completion_ids[chosen],
        completion_mask=mask,
        group_size=experience.rollout.group_size,
    )


def _completion_rows(experience: Experience, rows: list[int] | tuple[int, ...]) -> list[int]:
    size = experience.rollout.group_size
    return [row * size + sample for row in rows for sample in range(size)]


def _chunks(rows: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _even_split(order: list[int], parts: int) -> Iterator[list[int]]:
    for part in range(parts):
        yield order[part * len(order) // parts : (part + 1) * len(order) // parts]
