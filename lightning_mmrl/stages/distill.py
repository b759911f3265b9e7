"""Which completions of an iteration are trained on and how often, drawn among those of all ranks."""

import hashlib
from dataclasses import replace

import torch

from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.protocols.tensors import CompletionSelector
from lightning_mmrl.stages.context import StageContext
from lightning_mmrl.types.batches import Experience


def distilled(
    experience: Experience, distill: CompletionSelector, context: StageContext, iteration: int
) -> tuple[Experience, dict[str, float]]:
    """The experience with a weight for each completion, and what was drawn as shares of what could have been.

    The draw depends on (seed, iteration) and the advantages of all ranks alone: each rank draws for all and keeps its
    own, which is what one process draws.
    """
    ranks, own = context.ranks, experience.advantages
    parts = ranks.gather((own.cpu(), experience.trainable.cpu()))
    advantages, candidates = (torch.cat(column) for column in zip(*parts, strict=True))
    generator = torch.Generator().manual_seed(_draw_seed(context.seed, iteration))
    weights = distill(advantages, candidates, step=iteration - 1, num_steps=context.num_steps, generator=generator)
    first = _rows_before(parts, ranks)
    kept = weights[first : first + len(own)].to(own)
    count = max(1, int(candidates.sum()))
    shares = {
        "rollout/completions_drawn": float(weights.sum()) / count,
        "rollout/completions_distinct": int((weights > 0).sum()) / count,
    }
    return replace(experience, weights=kept, trainable=experience.trainable & (kept > 0)), shares


def _rows_before(parts: list[tuple[torch.Tensor, torch.Tensor]], ranks: Ranks) -> int:
    return sum(len(advantages) for advantages, _ in parts[: ranks.rank])


def _draw_seed(seed: int, iteration: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{iteration}/distill".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
