"""Microbatches of an experience within a budget, and dummy batches that keep ranks in lockstep."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_mmrl.ops.packing import Budget, GroupPart, pack_groups
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.settings.algorithm import UpdateSettings
from lightning_mmrl.stages.experience import Experience
from lightning_mmrl.types.batches import PromptBatch, ScoringBatch


def budget_of(update: UpdateSettings) -> Budget:
    """The limits of one microbatch."""
    pairs = float("inf") if update.pairs_per_microbatch is None else update.pairs_per_microbatch
    return Budget(tokens=update.tokens_per_microbatch, pairs=pairs)


def scoring_batches(
    experience: Experience,
    live: Sequence[int],
    *,
    budget: Budget,
    ranks: Ranks,
    prompts: Callable[[list[int]], PromptBatch] | None = None,
) -> Iterator[tuple[ScoringBatch, Int[Tensor, " n"] | None]]:
    """Yields the batches that a policy or a critic scores, each with the rows of the rollout that it holds.

    Where ranks run in lockstep, a rank with fewer batches than another gets dummy batches at the end, without rows: the
    model must run on them, but nothing in them counts. The ranks agree on the number of batches before the first one.

    Args:
        experience: Has the completions.
        live: Prompts whose completions are scored.
        budget: Limits of one batch.
        ranks: Who scores together.
        prompts: Gives the prompts of a batch with their media, by rows; None: `experience.prompts`.
    """
    prompts, microbatches = prompts or experience.prompts.select, _microbatches(experience, live, budget)
    num_missing = ranks.max(len(microbatches)) - len(microbatches) if ranks.lockstep else 0
    for parts in microbatches:
        yield scoring_batch(experience, parts, prompts), _rows(experience, parts)
    for _ in range(num_missing):
        yield _dummy_batch(experience, prompts), None


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
        completion_mask=experience.loss_mask(chosen) & inside.flatten()[:, None].to(rows.device),
        group_size=size,
    )


def _microbatches(experience: Experience, prompts: Sequence[int], budget: Budget) -> list[tuple[GroupPart, ...]]:
    """The given prompts' groups in microbatches within a budget."""
    if not prompts:
        return []
    widths = experience.prompts.prompt_mask.sum(-1)[list(prompts)].tolist()
    lengths = experience.loss_mask(prompts).sum(-1).unflatten(0, (-1, experience.rollout.group_size)).tolist()
    packed = pack_groups(widths, lengths, budget)
    return [tuple(replace(part, prompt=prompts[part.prompt]) for part in parts) for parts in packed]


def _rows(experience: Experience, parts: Sequence[GroupPart]) -> Int[Tensor, " n"]:
    """Rows of the rollout that belong to the parts' groups."""
    size = experience.rollout.group_size
    prompts = torch.tensor([part.prompt for part in parts], device=experience.advantages.device)
    return (prompts[:, None] * size + torch.arange(size, device=prompts.device)).flatten()


def _dummy_batch(experience: Experience, prompts: Callable[[list[int]], PromptBatch]) -> ScoringBatch:
    """Keeps ranks in lockstep: the smallest batch a policy can score, a prompt and a completion of one token each.

    It has no media, but keeps the type of the microbatches' media (tower inputs or outputs), so that it enters the
    towers if and only if the microbatches do.
    """
    some, token = prompts([0]), experience.rollout.completion_ids[:1, :1]
    mask = torch.ones_like(token, dtype=torch.bool)
    prompt = replace(
        some,
        input_ids=token,
        prompt_mask=mask,
        position_ids=torch.zeros_like(some.position_ids[:, :, :1]),
        next_position=torch.ones_like(some.next_position),
        media=replace(some.media, tensors={}, counts={}),
    )
    return ScoringBatch(prompts=prompt, completion_ids=token, completion_mask=mask, group_size=1)
