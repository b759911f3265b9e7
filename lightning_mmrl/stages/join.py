"""Joins and selects prompts, rollouts and scores, and gathers rows of all ranks; computes nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_mmrl.data.collate import same_width
from lightning_mmrl.ops.transfer import on_device
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.types.batches import PromptBatch, Rollout, Scores


def join_prompts(parts: Sequence[PromptBatch]) -> PromptBatch:
    """All prompts in order, padded on the left to the widest; padded positions are masked."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.input_ids.shape[1] for part in parts)
    gaps = [width - part.input_ids.shape[1] for part in parts]
    media = [(part.media, len(part.samples)) for part in parts]
    tensors, counts = {}, {}
    for name in dict.fromkeys(name for part, _ in media for name in part.tensors):
        tensors[name] = torch.cat(same_width([part.tensors[name] for part, _ in media if name in part.tensors]))
        counts[name] = tuple(count for part, number in media for count in part.counts.get(name, (0,) * number))
    has_keys = any(part.keys for part, _ in media)
    keys = tuple(key for part, number in media for key in (part.keys or ("",) * number)) if has_keys else ()
    return PromptBatch(
        samples=tuple(sample for part in parts for sample in part.samples),
        input_ids=torch.cat([pad(part.input_ids, (gap, 0)) for part, gap in zip(parts, gaps, strict=True)]),
        prompt_mask=torch.cat([pad(part.prompt_mask, (gap, 0)) for part, gap in zip(parts, gaps, strict=True)]),
        position_ids=torch.cat(
            [pad(part.position_ids, (gap, 0)) for part, gap in zip(parts, gaps, strict=True)], dim=1
        ),
        next_position=torch.cat([part.next_position for part in parts]),
        media=replace(parts[0].media, tensors=tensors, counts=counts, keys=keys),
    )


def join_rollouts(parts: Sequence[Rollout]) -> Rollout:
    """All completions in order, padded on the right to the longest."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.completion_ids.shape[1] for part in parts)
    gaps = [width - part.completion_ids.shape[1] for part in parts]

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([pad(tensor, (0, gap)) for tensor, gap in zip(tensors, gaps, strict=True)])

    return Rollout(
        completion_ids=joined([part.completion_ids for part in parts]),
        completion_mask=joined([part.completion_mask for part in parts]),
        sampler_logprobs=joined([part.sampler_logprobs for part in parts]),
        completions=tuple(completion for part in parts for completion in part.completions),
        group_size=parts[0].group_size,
        policy_version=torch.cat([part.policy_version for part in parts]),
        decoding=sum((Counter(part.decoding) for part in parts), Counter()),
    )


def join_scores(parts: Sequence[Scores]) -> Scores:
    """All scores in order; a component that a part lacks is zero there."""
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part.components)
    return Scores(
        rewards=torch.cat([part.rewards for part in parts]),
        valid=torch.cat([part.valid for part in parts]),
        components={
            name: torch.cat([part.components.get(name, torch.zeros_like(part.rewards)) for part in parts])
            for name in names
        },
        details=tuple(row for part in parts for row in part.details),
    )


def select_rollout(rollout: Rollout, groups: Sequence[int]) -> Rollout:
    """The completions of the given prompts, in that order; padding is kept."""
    size = rollout.group_size
    rows = [group * size + place for group in groups for place in range(size)]
    there = on_device(rows, rollout.completion_ids.device)
    return replace(
        rollout,
        completion_ids=rollout.completion_ids[there],
        completion_mask=rollout.completion_mask[there],
        sampler_logprobs=rollout.sampler_logprobs[there],
        completions=tuple(rollout.completions[row] for row in rows),
        policy_version=rollout.policy_version[there],
    )


def select_scores(scores: Scores, groups: Sequence[int]) -> Scores:
    """The scores of the given prompts, in that order."""
    there = on_device(list(groups), scores.rewards.device)
    return Scores(
        rewards=scores.rewards[there],
        valid=scores.valid[there],
        components={name: values[there] for name, values in scores.components.items()},
        details=tuple(scores.details[row] for row in groups),
    )


def gather_rows(ranks: Ranks, *columns: Tensor, serials: Sequence[int] = ()) -> tuple[list[Tensor], list[int]]:
    """The rows of all ranks, column by column in host memory, and which are this rank's; a collective.

    They are in the order of the prompts' `serials`, in which one process would have them, or of the ranks without any.
    """
    parts = ranks.gather((tuple(serials), *(column.cpu() for column in columns)))
    order, own = _merged([part[0] or range(len(part[1])) for part in parts], ranks.rank, sort=bool(parts[0][0]))
    return [torch.cat(column)[order] for column in list(zip(*parts, strict=True))[1:]], own


def batch_places(ranks: Ranks, prompts: PromptBatch) -> list[int]:
    """Where this rank's prompts stand among those of all ranks, in the order of the draws; a collective."""
    parts = ranks.gather(prompts.serials or range(len(prompts.samples)))
    return _merged(parts, ranks.rank, sort=bool(prompts.serials))[1]


def _merged(parts: Sequence[Sequence[int]], rank: int, *, sort: bool) -> tuple[list[int], list[int]]:
    """The rows of all ranks, one rank after the other, in the order of their serials; and the places of one rank's."""
    serials = [serial for part in parts for serial in part]
    order = sorted(range(len(serials)), key=serials.__getitem__) if sort else list(range(len(serials)))
    place = {row: at for at, row in enumerate(order)}
    first = sum(len(part) for part in parts[:rank])
    return order, [place[first + row] for row in range(len(parts[rank]))]
