"""Collates encoded samples into batches: prompts are padded on the left, targets on the right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_mmrl.types.batches import MediaInputs, PromptBatch, SftBatch
from lightning_mmrl.types.records import Sample

TEXT_KEYS = frozenset({"input_ids", "position_ids", "next_position"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSample:
    """One sample as tensors.

    Attributes:
        sample: The sample.
        prompt: Result of `PromptEncoder.encode_prompt`.
        target_ids: Token ids of the target; empty without a target. A conversation has all its targets here, with the
            turns between them.
        target_mask: True for tokens that count in the loss; empty if all do.
        media_key: Identifies the content of the sample's media as the model sees them; "" if this is unknown or there
            are no media.
        later: Further prompts of the same sample with their targets.
        serial: The number of the draw that the sample answers; None until a batch takes it.
    """

    sample: Sample
    prompt: Mapping[str, Tensor]
    target_ids: tuple[int, ...] = ()
    target_mask: tuple[bool, ...] = ()
    media_key: str = ""
    later: tuple["EncodedSample", ...] = ()
    serial: int | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all its prompts and targets."""
        return sum(len(part.prompt["input_ids"]) + len(part.target_ids) for part in (self, *self.later))


def collate_prompts(items: Sequence[EncodedSample], pad_token_id: int) -> PromptBatch:
    """Collates B prompts, padded on the left to the length of the longest."""
    width = max(len(item.prompt["input_ids"]) for item in items)
    gaps = [width - len(item.prompt["input_ids"]) for item in items]
    ids = [pad(item.prompt["input_ids"], (gap, 0), value=pad_token_id) for item, gap in zip(items, gaps, strict=True)]
    positions = [pad(item.prompt["position_ids"], (gap, 0)) for item, gap in zip(items, gaps, strict=True)]
    tensors, counts = {}, {}
    for key in dict.fromkeys(key for item in items for key in item.prompt if key not in TEXT_KEYS):
        tensors[key] = torch.cat(same_width([item.prompt[key] for item in items if key in item.prompt]))
        counts[key] = tuple(len(item.prompt[key]) if key in item.prompt else 0 for item in items)
    return PromptBatch(
        samples=tuple(item.sample for item in items),
        input_ids=torch.stack(ids),
        prompt_mask=torch.arange(width) >= torch.tensor(gaps)[:, None],
        position_ids=torch.stack(positions, dim=1),
        next_position=torch.cat([item.prompt["next_position"] for item in items]),
        media=MediaInputs(tensors=tensors, counts=counts, keys=tuple(item.media_key for item in items)),
        serials=tuple(item.serial for item in items if item.serial is not None),
    )


def collate_targets(items: Sequence[EncodedSample], pad_token_id: int) -> SftBatch:
    """Collates B prompts and their targets, padded on the right; targets of one prompt are rows of its group."""
    return _collated(_by_prompt([part for item in items for part in (item, *item.later)]), pad_token_id)


def collate_pairs(items: Sequence[EncodedSample], pad_token_id: int) -> SftBatch:
    """Collates B pairs: each prompt has the two answers of its pair, chosen and rejected, and no other."""
    return _collated([[item, *item.later] for item in items], pad_token_id)


def _collated(groups: Sequence[Sequence[EncodedSample]], pad_token_id: int) -> SftBatch:
    """Collates groups of targets, each with the prompt of its first."""
    parts = [part for group in groups for part in group]
    size = max(len(group) for group in groups)
    width = max(len(part.target_ids) for part in parts)
    ids = torch.full((len(groups), size, width), pad_token_id)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, group in enumerate(groups):
        for place, item in enumerate(group):
            ids[row, place, : len(item.target_ids)] = torch.tensor(item.target_ids)
            mask[row, place, : len(item.target_ids)] = torch.tensor(item.target_mask or True)
    return SftBatch(
        prompts=collate_prompts([group[0] for group in groups], pad_token_id),
        completion_ids=ids.flatten(0, 1),
        completion_mask=mask.flatten(0, 1),
        samples=tuple(item.sample for item in parts),
    )


def _by_prompt(items: Sequence[EncodedSample]) -> list[list[EncodedSample]]:
    """The samples of each prompt, in the order of the first of them; media of unknown content are never the same."""
    groups: dict[object, list[EncodedSample]] = {}
    for number, item in enumerate(items):
        known = item.media_key or item.prompt.keys() <= TEXT_KEYS
        key = (tuple(item.prompt["input_ids"].tolist()), item.media_key) if known else number
        groups.setdefault(key, []).append(item)
    return list(groups.values())


def same_width(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Pads the last axis (audio frames) on the right with zeros, to the largest width."""
    width = max(tensor.shape[-1] for tensor in tensors)
    return [tensor if tensor.shape[-1] == width else pad(tensor, (0, width - tensor.shape[-1])) for tensor in tensors]
