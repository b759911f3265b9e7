"""Microbatches of an optimizer step within a budget, and dummy batches that keep ranks in lockstep."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_mmrl.models.shared_prefix import present_tokens
from lightning_mmrl.ops.packing import Budget, GroupPart, pack_groups
from lightning_mmrl.ops.transfer import on_device, on_host
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.settings.algorithm import MicrobatchSettings
from lightning_mmrl.stages.costs import Count
from lightning_mmrl.stages.experience import Experience
from lightning_mmrl.types.batches import PromptBatch, ScoringBatch

Prompts = Callable[[list[int]], PromptBatch]
"""Gives prompts with their media, by rows."""


def budget_of(settings: MicrobatchSettings) -> Budget:
    """The limits of one microbatch."""
    pairs = float("inf") if settings.pairs_per_microbatch is None else settings.pairs_per_microbatch
    return Budget(tokens=settings.tokens_per_microbatch, pairs=pairs)


def scoring_batches(
    experience: Experience,
    live: Sequence[int],
    *,
    budget: Budget,
    ranks: Ranks,
    prompts: Prompts | None = None,
    count: Count | None = None,
) -> Iterator[tuple[ScoringBatch, Int[Tensor, " n"] | None]]:
    """Yields the microbatches of an experience, see `microbatches`; its tokens that count in the loss are scored.

    Args:
        experience: Has the completions.
        live: Prompts whose completions are scored.
        budget: Limits of one batch.
        ranks: Who scores together.
        prompts: Gives the prompts of a batch with their media; None: `experience.prompts`.
        count: As in `microbatches`.
    """
    return microbatches(one_batch(experience), live, budget=budget, ranks=ranks, prompts=prompts, count=count)


def one_batch(experience: Experience) -> ScoringBatch:
    """All completions of an experience as one batch; those that do not count are left out."""
    return ScoringBatch(
        prompts=experience.prompts,
        completion_ids=experience.rollout.completion_ids,
        completion_mask=experience.loss_mask(),
        group_size=experience.rollout.group_size,
    )


def microbatches(
    batch: ScoringBatch,
    live: Sequence[int],
    *,
    budget: Budget,
    ranks: Ranks,
    prompts: Prompts | None = None,
    whole: bool = False,
    count: Count | None = None,
) -> Iterator[tuple[ScoringBatch, Int[Tensor, " n"] | None]]:
    """Parts of a batch that a policy or a critic scores, each with the rows of the batch that it holds.

    Where ranks run in lockstep, a rank with fewer parts than another gets dummy batches at the end, without rows: the
    model must pass them, and nothing counts. The number is agreed on before the first part.

    Args:
        batch: Prompts with their completions.
        live: Prompts whose completions are scored.
        budget: Of one part.
        ranks: Who scores together.
        prompts: Gives the prompts of a part with their media; None: those of the batch.
        whole: Whether the completions of a prompt must be in one part, whatever the budget is.
        count: Takes what the parts hold: the tokens of prompts and of their completions, and the number of parts.
    """
    prompts, packed = prompts or batch.prompts.select, _packed(batch, live, budget, whole=whole, count=count)
    num_missing = ranks.max(len(packed)) - len(packed) if ranks.lockstep else 0
    for parts in packed:
        yield microbatch(batch, parts, prompts), _rows(batch, parts)
    for _ in range(num_missing):
        yield _dummy_batch(batch, prompts), None


def microbatch(batch: ScoringBatch, parts: Sequence[GroupPart], prompts: Prompts) -> ScoringBatch:
    """Parts of a batch's groups, as a policy scores them; completions of another part are left out."""
    size, rows = batch.group_size, _rows(batch, parts)
    inside = torch.zeros(len(parts), size, dtype=torch.bool)
    for row, part in enumerate(parts):
        inside[row, list(part.completions)] = True
    return ScoringBatch(
        prompts=prompts([part.prompt for part in parts]),
        completion_ids=batch.completion_ids[rows],
        completion_mask=batch.completion_mask[rows] & inside.flatten()[:, None].to(rows.device, non_blocking=True),
        group_size=size,
    )


def _packed(
    batch: ScoringBatch, prompts: Sequence[int], budget: Budget, *, whole: bool, count: Count | None
) -> list[tuple[GroupPart, ...]]:
    """The given prompts' groups in microbatches within a budget."""
    if not prompts:
        return []
    chosen = list(prompts)
    present = present_tokens(batch.completion_mask).sum(-1).unflatten(0, (-1, batch.group_size))
    counts = on_host([batch.prompts.prompt_mask.sum(-1), present])
    widths, lengths = (tensor[chosen].tolist() for tensor in counts)
    packed = pack_groups(widths, lengths, budget, whole=whole)
    if count is not None:
        scored = [(width, row) for width, row in zip(widths, lengths, strict=True) if any(row)]
        count([width for width, _ in scored], [row for _, row in scored], len(packed))
    return [tuple(replace(part, prompt=chosen[part.prompt]) for part in parts) for parts in packed]


def _rows(batch: ScoringBatch, parts: Sequence[GroupPart]) -> Int[Tensor, " n"]:
    """Rows of the batch that belong to the parts' groups."""
    prompts = on_device([part.prompt for part in parts], batch.completion_ids.device)
    return (prompts[:, None] * batch.group_size + torch.arange(batch.group_size, device=prompts.device)).flatten()


def _dummy_batch(batch: ScoringBatch, prompts: Prompts) -> ScoringBatch:
    """Keeps ranks in lockstep: the smallest batch a policy can score, a prompt and a completion of one token each.

    It has no media, but keeps the type of the microbatches' media (tower inputs or outputs), so that it enters the
    towers if and only if the microbatches do.
    """
    some, token = prompts([0]), batch.completion_ids[:1, :1]
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
