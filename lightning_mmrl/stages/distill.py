"""Which completions of an iteration are trained on and how often, drawn among those of all ranks."""

from dataclasses import replace

import torch

from lightning_mmrl.protocols.tensors import CompletionSelector
from lightning_mmrl.rollout.sampling import hashed_seed
from lightning_mmrl.stages.context import StageContext
from lightning_mmrl.stages.join import gather_rows
from lightning_mmrl.types.batches import Experience


def distilled(
    experience: Experience, distill: CompletionSelector, context: StageContext, iteration: int
) -> tuple[Experience, dict[str, float]]:
    """The experience with a weight for each completion, and what was drawn as shares of what could have been.

    The draw depends on (seed, iteration) and the advantages of all ranks alone: each rank draws for all and keeps its
    own, which is what one process draws.
    """
    (advantages, candidates), own = gather_rows(context.ranks, experience.advantages, experience.trainable)
    generator = torch.Generator().manual_seed(hashed_seed(f"{context.seed}/{iteration}/distill", num_bytes=4))
    weights = distill(advantages, candidates, step=iteration - 1, num_steps=context.num_steps, generator=generator)
    kept = weights[own].to(experience.advantages)
    count = max(1, int(candidates.sum()))
    shares = {
        "rollout/completions_drawn": float(weights.sum()) / count,
        "rollout/completions_distinct": int((weights > 0).sum()) / count,
    }
    return replace(experience, weights=kept, trainable=experience.trainable & (kept > 0)), shares
