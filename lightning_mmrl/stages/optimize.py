"""The optimizer step of an RL iteration: microbatches, a global loss denominator and what it says of itself."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.ops.kl import approx_kl
from lightning_mmrl.ops.masked import masked_sum
from lightning_mmrl.ops.packing import Budget, GroupPart, pack_groups
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.protocols.tensors import Aggregation, Correction, PolicyLoss
from lightning_mmrl.stages.mismatch import (
    MISMATCH_MAXIMA,
    MISMATCH_SUMS,
    correction_of,
    mismatch_maxima,
    mismatch_sums,
)
from lightning_mmrl.types.batches import Experience, LossInputs, LossOutput, PolicyOutput, PromptBatch, ScoringBatch

SUMS = ("loss", "tokens", "clipped", "clipped_low", "clipped_high", "kl", "entropy", "ratio", *MISMATCH_SUMS)
"""What an optimizer step adds up over its tokens, beside the divergence from a reference policy..."""
MAXIMA = ("ratio_max", *MISMATCH_MAXIMA)
"""...and what it takes the largest of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSettings:
    """How one rollout is turned into optimizer steps.

    Attributes:
        num_epochs: Passes over the rollout.
        num_minibatches: Optimizer steps per pass; prompts are split evenly.
        tokens_per_microbatch: Tokens that are scored at once, a prompt counted once for its group; bounds memory, does
            not change the loss. A group that does not fit is split.
        pairs_per_microbatch: Attention pairs that are scored at once; None leaves it to the tokens.
        max_grad_norm: Gradient norm above which gradients are scaled down; infinity never.
    """

    num_epochs: int = 1
    num_minibatches: int = 1
    tokens_per_microbatch: int = 16_384
    pairs_per_microbatch: int | None = None
    max_grad_norm: float = 1.0

    @property
    def on_policy(self) -> bool:
        """True if every gradient is taken at the weights that sampled: the old log-probs are the policy's own."""
        return self.num_epochs == 1 and self.num_minibatches == 1

    @property
    def budget(self) -> Budget:
        """What one microbatch may hold."""
        pairs = float("inf") if self.pairs_per_microbatch is None else self.pairs_per_microbatch
        return Budget(tokens=self.tokens_per_microbatch, pairs=pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is minimised in one iteration.

    Attributes:
        loss: A loss per token.
        aggregation: What it is divided by.
        correction: Weights of the losses, but not of the terms that do not depend on advantages; None for none.
        ranks: Whose tokens count together.
        kl: The divergence from the reference policy, of experience that has its log-probabilities.
        kl_coefficient: Its part in the loss of this iteration; 0 if it is in the reward, or only reported.
        entropy_coefficient: The part of the entropy in the loss of this iteration.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Minibatch:
    """This rank's prompts of one optimizer step: all of them count in the denominator, the live ones are scored."""

    rows: tuple[int, ...]
    live: tuple[int, ...]


def plan_minibatches(
    experience: Experience,
    settings: UpdateSettings,
    generator: torch.Generator,
    ranks: Ranks = ALONE,
    *,
    regularized: bool = False,
) -> list[Minibatch]:
    """Which of this rank's prompts each optimizer step uses, for all epochs.

    The prompts of all ranks, equally many on each, are split together: every step has the prompts that it would have in
    one process, on the ranks where they are. A rank may have more or fewer of them than another, or none.

    A group whose advantages are all zero has an exactly zero gradient under a loss without KL or entropy term: it
    stays in the denominator and is not scored. With `regularized`, the loss has such a term.
    """
    own = len(experience.prompts.samples)
    num_prompts, first = own * ranks.world_size, own * ranks.rank
    moved = experience.trainable if regularized else (experience.advantages != 0) & experience.trainable
    signal = moved.any(-1).tolist()
    plans = []
    for _ in range(settings.num_epochs):
        order = list(range(num_prompts))
        if settings.num_minibatches > 1:
            order = torch.randperm(num_prompts, generator=generator).tolist()
        for chosen in _even_split(order, settings.num_minibatches):
            rows = [prompt - first for prompt in chosen if first <= prompt < first + own]
            plans.append(Minibatch(rows=tuple(rows), live=tuple(row for row in rows if signal[row])))
    return plans


def score_old(
    policy: Policy,
    experience: Experience,
    budget: Budget,
    ranks: Ranks = ALONE,
    prompts: Callable[[list[int]], PromptBatch] | None = None,
) -> Float[Tensor, "N C"]:
    """Log-probabilities of the rollout under a policy that is not updated, zero where nothing counts.

    That is the policy before its first update, or the reference policy. `prompts` gives the rows of a microbatch with
    their media, for a policy that other towers belong to than those that encoded the prompts of the experience.
    """
    rows, prompts = list(range(len(experience.prompts.samples))), prompts or experience.prompts.select
    old = torch.zeros_like(experience.rollout.sampler_logprobs)
    with torch.no_grad():
        microbatches = _microbatches(experience, rows, budget)
        num_missing = _missing(ranks, len(microbatches))
        for microbatch in microbatches:
            batch = scoring_batch(experience, microbatch, prompts)
            logprobs = policy(batch).logprobs
            old = old.to(logprobs.dtype).index_add(0, _rows(experience, microbatch), logprobs)
        for _ in range(num_missing):
            policy(_filler(experience, prompts))
    return old


def accumulate_loss(
    policy: Policy,
    experience: Experience,
    minibatch: Minibatch,
    *,
    objective: Objective,
    old_logprobs: Tensor | None,
    budget: Budget,
    prompts: Callable[[list[int]], PromptBatch],
    backward: Callable[[Tensor], None],
) -> dict[str, Tensor]:
    """Adds the gradient of one minibatch, microbatch by microbatch, and returns its statistics.

    The denominator is counted over the whole minibatch and all ranks first, so that the split into microbatches and
    ranks does not matter; the gradients of all ranks add up to the gradient of one process, and the statistics are of
    all ranks. Their `denominator` is the loss's own, so that the losses of several minibatches can be averaged.
    `old_logprobs` is None when the policy's own, detached, are the old ones. `prompts` gives the rows of a microbatch
    with their media, as `PromptBatch.select` does.
    """
    ranks = objective.ranks
    denominator = ranks.sum(_denominator(objective.aggregation, experience, minibatch.rows))
    totals: dict[str, Tensor] = {}
    largest = {name: torch.zeros((), device=denominator.device) for name in MAXIMA}
    microbatches = _microbatches(experience, minibatch.live, budget)
    num_missing = _missing(ranks, len(microbatches))
    for microbatch in microbatches:
        batch = scoring_batch(experience, microbatch, prompts)
        output = policy(batch, entropy_gradient=objective.entropy_coefficient != 0)
        mask, rows = batch.completion_mask, _rows(experience, microbatch)
        inputs = LossInputs(
            logprobs=output.logprobs,
            old_logprobs=output.logprobs.detach() if old_logprobs is None else old_logprobs[rows],
            advantages=token_advantages(experience)[rows],
            completion_mask=mask,
        )
        losses, sampler = objective.loss(inputs), experience.rollout.sampler_logprobs[rows]
        correction = correction_of(objective.correction, inputs, sampler)
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
    for _ in range(num_missing):
        _pass_for_others(policy, _filler(experience, prompts), backward)
    names = (*SUMS, "reference_kl") if experience.reference_logprobs is not None else SUMS
    totals = {name: totals.get(name, torch.zeros_like(denominator)) for name in names}
    return _joined(totals, largest, ranks) | {"denominator": denominator}


def passes(
    experience: Experience,
    minibatch: Minibatch,
    *,
    budget: Budget,
    ranks: Ranks,
    prompts: Callable[[list[int]], PromptBatch],
) -> Iterator[tuple[ScoringBatch, Int[Tensor, " n"] | None]]:
    """What another model than the policy scores for a minibatch, with the rows of the rollout that it is about.

    Where passes are made in step, a rank with fewer of them gets batches that nothing counts of, and no rows.
    """
    microbatches = _microbatches(experience, minibatch.live, budget)
    num_missing = _missing(ranks, len(microbatches))
    for microbatch in microbatches:
        yield scoring_batch(experience, microbatch, prompts), _rows(experience, microbatch)
    for _ in range(num_missing):
        yield _filler(experience, prompts), None


def token_advantages(experience: Experience) -> Float[Tensor, "N C"]:
    """The advantage of each token: its own, or that of its completion."""
    if experience.token_advantages is not None:
        return experience.token_advantages
    return experience.advantages.reshape(-1, 1).expand(experience.rollout.completion_mask.shape)


def loss_mask(experience: Experience, prompts: Sequence[int]) -> Bool[Tensor, "N C"]:
    """Tokens of the given prompts' completions that count: sampled, and of a trainable completion."""
    size, chosen = experience.rollout.group_size, list(prompts)
    mask = experience.rollout.completion_mask.unflatten(0, (-1, size))[chosen]
    return (mask & experience.trainable[chosen][..., None]).flatten(0, 1)


def _denominator(aggregation: Aggregation, experience: Experience, prompts: Sequence[int]) -> Float[Tensor, ""]:
    """That of completions as often as they count: it is additive, so equal weights are counted together."""
    mask = loss_mask(experience, prompts)
    if experience.weights is None:
        return aggregation.denominator(mask)
    weights = experience.weights[list(prompts)].flatten()
    total = aggregation.denominator(torch.zeros_like(mask))
    for weight in weights.unique():
        total = total + weight * aggregation.denominator(mask & (weights == weight)[:, None])
    return total


def scoring_batch(
    experience: Experience, parts: Sequence[GroupPart], prompts: Callable[[list[int]], PromptBatch]
) -> ScoringBatch:
    """Parts of groups, as a policy scores them; completions of another part, or that do not count, are left out."""
    chosen = [part.prompt for part in parts]
    size, rows = experience.rollout.group_size, _rows(experience, parts)
    inside = torch.zeros(len(parts), size, dtype=torch.bool)
    for row, part in enumerate(parts):
        inside[row, list(part.completions)] = True
    return ScoringBatch(
        prompts=prompts(chosen),
        completion_ids=experience.rollout.completion_ids[rows],
        completion_mask=loss_mask(experience, chosen) & inside.flatten()[:, None].to(rows.device),
        group_size=size,
    )


def _missing(ranks: Ranks, num_passes: int) -> int:
    """How many more passes another rank makes, if all must make the same number; asked before the first."""
    return ranks.most(num_passes) - num_passes if ranks.lockstep else 0


def _filler(experience: Experience, prompts: Callable[[list[int]], PromptBatch]) -> ScoringBatch:
    """The smallest batch a policy can score: one token behind a prompt of one token, without media.

    Its media are marked as those of this rank's microbatches are, so that it enters the towers if and only if they do.
    """
    some, token = prompts([0]), experience.rollout.completion_ids[:1, :1]
    prompt = replace(
        some,
        input_ids=token,
        prompt_mask=torch.ones_like(token, dtype=torch.bool),
        position_ids=torch.zeros_like(some.position_ids[:, :, :1]),
        next_position=torch.ones_like(some.next_position),
        media=replace(some.media, tensors={}, counts={}),
    )
    return ScoringBatch(
        prompts=prompt, completion_ids=token, completion_mask=torch.ones_like(token, dtype=torch.bool), group_size=1
    )


def _pass_for_others(policy: Policy, filler: ScoringBatch, backward: Callable[[Tensor], None]) -> None:
    """A forward and a backward pass with a gradient of zero."""
    logprobs = policy(filler).logprobs
    backward(masked_sum(logprobs, torch.zeros_like(filler.completion_mask)))


def _divergence(
    objective: Objective, inputs: LossInputs, reference_logprobs: Tensor | None, rows: Tensor
) -> Float[Tensor, "N C"] | None:
    """The estimate of the divergence at each token, or None if nothing is compared."""
    if objective.kl is None or reference_logprobs is None:
        return None
    reference = reference_logprobs[rows].to(inputs.logprobs.dtype)
    return objective.kl(inputs.logprobs, inputs.old_logprobs, reference, inputs.completion_mask)


def _regularized(
    objective: Objective, token_losses: Tensor, divergence: Tensor | None, output: PolicyOutput
) -> Float[Tensor, "N C"]:
    """The losses of the tokens with the terms that do not depend on advantages."""
    if objective.kl_coefficient and divergence is not None:
        token_losses = token_losses + objective.kl_coefficient * divergence
    if objective.entropy_coefficient:
        token_losses = token_losses - objective.entropy_coefficient * output.entropy
    return token_losses


def _token_sums(inputs: LossInputs, losses: LossOutput, output: PolicyOutput) -> dict[str, Tensor]:
    """What is reported as means over tokens, summed over those of a microbatch."""
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


def _joined(totals: dict[str, Tensor], largest: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Sums over the ranks, and the largest values of any of them."""
    if ranks.world_size == 1:
        return totals | largest
    values = ranks.sum(torch.stack([total.double() for total in totals.values()]))
    parts = ranks.gather({name: float(value) for name, value in largest.items()})
    most = {name: torch.tensor(max(part[name] for part in parts)) for name in largest}
    return dict(zip(totals, values, strict=True)) | most


def _microbatches(experience: Experience, prompts: Sequence[int], budget: Budget) -> list[tuple[GroupPart, ...]]:
    """The given prompts' groups in microbatches within a budget."""
    if not prompts:
        return []
    widths = experience.prompts.prompt_mask.sum(-1)[list(prompts)].tolist()
    lengths = loss_mask(experience, prompts).sum(-1).unflatten(0, (-1, experience.rollout.group_size)).tolist()
    packed = pack_groups(widths, lengths, budget)
    return [tuple(replace(part, prompt=prompts[part.prompt]) for part in parts) for parts in packed]


def _rows(experience: Experience, parts: Sequence[GroupPart]) -> Int[Tensor, " n"]:
    """Rows of the rollout that belong to the parts' groups."""
    size = experience.rollout.group_size
    prompts = torch.tensor([part.prompt for part in parts], device=experience.advantages.device)
    return (prompts[:, None] * size + torch.arange(size, device=prompts.device)).flatten()


def _even_split(order: list[int], parts: int) -> Iterator[list[int]]:
    for part in range(parts):
        yield order[part * len(order) // parts : (part + 1) * len(order) // parts]
