"""Completions of an iteration resampled by their advantages, among the completions of all ranks."""

from dataclasses import replace

import torch

from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.protocols.tensors import CompletionSelector
from lightning_mmrl.rollout.sampling import hashed_seed
from lightning_mmrl.stages.context import StageContext
from lightning_mmrl.stages.experience import Experience
from lightning_mmrl.stages.join import gather_rows


def resampled(
    experience: Experience, resample: CompletionSelector, context: StageContext, iteration: int, step: int | float
) -> Experience:
    """The experience with a weight for each completion: how often it is trained on.

    `step` is where the schedule of the selection is. Otherwise the draw depends on (seed, iteration) and the advantages
    of all ranks alone: each rank draws for all and keeps its own, as one process would draw. All tokens of a completion
    must have the same advantage.
    """
    sequence_advantages = experience.advantages[:, 0].reshape(experience.trainable.shape)
    (advantages, candidates), own = gather_rows(
        context.ranks, sequence_advantages, experience.trainable, serials=experience.prompts.serials
    )
    # The word is part of the seed: another one would draw other completions.
    generator = torch.Generator().manual_seed(hashed_seed(f"{context.seed}/{iteration}/distill", num_bytes=4))
    weights = resample(advantages, candidates, step=step, num_steps=context.settings.steps, generator=generator)
    kept = weights[own].to(experience.advantages)
    return replace(experience, weights=kept, trainable=experience.trainable & (kept > 0))


def resample_stats(before: Experience, after: Experience, ranks: Ranks) -> dict[str, float]:
    """How many completions were drawn, and how many distinct ones, as shares of all that could be drawn."""
    weights = after.weights
    assert weights is not None
    counts = torch.stack([weights.sum(), (weights > 0).sum(), before.trainable.sum()]).cpu().double()
    num_drawn, num_distinct, num_candidates = ranks.sum(counts).tolist()
    return {
        "rollout/completions_drawn": num_drawn / max(1.0, num_candidates),
        "rollout/completions_distinct": num_distinct / max(1.0, num_candidates),
    }
