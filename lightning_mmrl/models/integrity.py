"""Checks that one feature row of a prompt's own media backs each of its placeholders, before anything is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad

from lightning_mmrl.errors import MediaError
from lightning_mmrl.ops.transfer import on_device, on_host
from lightning_mmrl.types.batches import MediaFeatures, MediaInputs, PromptBatch, SftBatch
from lightning_mmrl.types.records import MediaKind, Sample

Rows = Mapping[str, tuple[int, ...]]
"""For each kind of media that any prompt has, the number of feature rows of each prompt."""

REMEDY = (
    "a medium was lost, exchanged or cut after its prompt was tokenized, or the text itself holds a media token; mark "
    "media by <image>, <video> and <audio> tags alone, and empty data.media.cache_dir if its files were touched"
)


class MediaCounter(Protocol):
    """The part of a backbone that counts media before its towers run.

    Each of `placeholder_ids` stands for one feature row of its kind. `medium_keys` names, by kind, an input with one
    row per medium. `feature_rows` gives, by kind, how many rows the towers will make of every medium [media].
    """

    @property
    def placeholder_ids(self) -> Mapping[str, int]: ...

    @property
    def medium_keys(self) -> Mapping[MediaKind, str]: ...

    def feature_rows(self, media: MediaInputs) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Media:
    """The media of one kind: the number of feature rows of each medium [media], and of media of each prompt."""

    rows: Int[Tensor, " media"]
    per_prompt: tuple[int, ...]


def checked_rows(backbone: MediaCounter, prompts: PromptBatch) -> Rows:
    """Returns the number of feature rows of each prompt, after comparing it with the placeholders, medium by medium.

    Placeholders of a kind come in runs: one for each medium, or several if clip and sound interleave. In either case a
    medium ends where a run ends, so that media in a wrong order are found. The host waits for the device once.

    Raises:
        MediaError: A prompt has more or fewer placeholders than its media have rows, or a medium ends within a run.
    """
    carried = prompts.media
    names = {key: f"{key} features" if isinstance(carried, MediaFeatures) else key for key in carried.counts}
    for key, counts in carried.counts.items():
        _check_total(names[key], len(carried.tensors[key]), counts, prompts.samples)
    tokens, media = backbone.placeholder_ids, _media_by_kind(backbone, prompts)
    surveys = {kind: _survey(prompts, token, media[kind].rows) for kind, token in tokens.items()}
    found = {}
    for kind, survey in zip(surveys, on_host(list(surveys.values())), strict=True):
        found[kind] = _placeholders(prompts, kind, media[kind].per_prompt, survey)
    for key, counts in carried.counts.items():
        for row, (sample, count) in enumerate(zip(prompts.samples, counts, strict=True)):
            if count and not any(per_prompt[row] for per_prompt in found.values()):
                # The model does not read these media and would ignore them.
                raise MediaError(
                    f"sample {sample.id}: {count} rows of {names[key]} but 0 placeholders of any kind; choose a model "
                    "that reads these media or leave them out"
                )
    return {kind: rows for kind, rows in found.items() if any(rows)}


def check_features(features: Mapping[str, Tensor], rows: Rows, samples: Sequence[Sample]) -> None:
    """Compares the numbers of rows that the towers made with the expected ones.

    Raises:
        MediaError: It names the first sample whose rows are missing, or the last one if there are too many rows.
    """
    for kind in {**rows, **features}:
        num_found = len(features[kind]) if kind in features else 0
        _check_total(f"{kind} features", num_found, rows.get(kind, (0,) * len(samples)), samples)


def check_targets(batch: SftBatch, placeholder_ids: Mapping[str, int]) -> None:
    """Refuses targets with media tokens: the model can never sample them, and no feature backs them.

    Raises:
        MediaError: It names the first such sample.
    """
    mask = batch.completion_mask.any(-1)
    ids, counted = batch.completion_ids[mask], batch.completion_mask[mask]
    hits = {kind: ((ids == token) & counted).sum(-1) for kind, token in placeholder_ids.items()}
    for kind, counts in zip(hits, on_host(list(hits.values())), strict=True):
        for sample, count in zip(batch.samples, counts.tolist(), strict=True):
            if count:
                raise MediaError(
                    f"sample {sample.id}: {count} {kind} placeholders in its target, for which there are 0 {kind} "
                    "feature rows; take the media token out of the assistant turn"
                )


def _media_by_kind(backbone: MediaCounter, prompts: PromptBatch) -> dict[str, _Media]:
    """The media of each kind; features count as one medium per prompt, since only their total of rows is known."""
    media, device = prompts.media, prompts.input_ids.device
    absent = (0,) * len(prompts.samples)
    if isinstance(media, MediaFeatures):
        sums = {kind: media.counts.get(kind, absent) for kind in backbone.placeholder_ids}
        once = (1,) * len(prompts.samples)
        return {kind: _Media(rows=on_device(rows, device), per_prompt=once) for kind, rows in sums.items()}
    rows, none = backbone.feature_rows(media), torch.zeros(0, dtype=torch.long, device=device)
    return {
        kind: _Media(rows=rows.get(kind, none).to(device), per_prompt=media.counts.get(key, absent))
        for kind, key in backbone.medium_keys.items()
    }


def _survey(prompts: PromptBatch, token: int, rows: Int[Tensor, " media"]) -> Int[Tensor, " B+2*media"]:
    """Numbers of placeholders by prompt and of rows by medium, and whether each medium ends where a run ends."""
    slots = (prompts.input_ids == token) & prompts.prompt_mask
    last = slots & ~pad(slots[:, 1:], (0, 1))
    number = slots.flatten().cumsum(0)
    ends = torch.zeros(len(number) + 1, dtype=torch.bool, device=slots.device)
    ends[0] = True
    ends.scatter_(0, number.where(last.flatten(), 0), True)
    return torch.cat([slots.sum(-1), rows, ends[rows.cumsum(0).clamp(max=len(number))].long()])


def _placeholders(prompts: PromptBatch, kind: str, per_prompt: tuple[int, ...], survey: Tensor) -> tuple[int, ...]:
    """The number of placeholders of each prompt, after checking that all are backed."""
    placeholders, rows, ends = survey.split([len(per_prompt), sum(per_prompt), sum(per_prompt)])
    pieces = zip(prompts.samples, placeholders.tolist(), rows.split(per_prompt), ends.split(per_prompt), strict=True)
    for sample, count, own_rows, own_ends in pieces:
        num_rows = int(own_rows.sum())
        if count != num_rows:
            raise MediaError(
                f"sample {sample.id}: {count} {kind} placeholders but {num_rows} {kind} feature rows; {REMEDY}"
            )
        if not own_ends.all():
            raise MediaError(
                f"sample {sample.id}: its {kind} media have {own_rows.tolist()} feature rows, and one of them ends "
                f"within a run of placeholders although all {count} are backed: media are not in the order of their "
                "tags; list them in that order"
            )
    return tuple(placeholders.tolist())


def _check_total(what: str, num_found: int, counts: tuple[int, ...], samples: Sequence[Sample]) -> None:
    """Compares the length of a tensor with the rows that prompts own; rows lie in the order of the prompts."""
    if num_found == sum(counts):
        return
    left, named, expected = num_found, samples[-1].id, counts[-1]
    for sample, count in zip(samples, counts, strict=True):
        if left < count:
            named, expected = sample.id, count
            break
        left -= count
    else:
        left += counts[-1]
    raise MediaError(
        f"sample {named}: {expected} rows of {what} expected but {left} found; a tensor was cut after the batch was "
        "collated, or a tower merges patches in another way than its placeholders were counted"
    )
