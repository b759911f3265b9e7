"""Makes prompts for an engine that runs its own towers: token ids, positions, tower inputs, and places of the media."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.models.encoders import MediaBackbone
from lightning_mmrl.models.families.media_keys import AUDIO_FEATURES, AUDIO_MASK, VIDEO_GRID
from lightning_mmrl.types.batches import MediaInputs, PromptBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaSpan:
    """The place of one medium in a prompt: `mask` [length] is True on its placeholders, counted from `offset`.

    The mask is False on tokens between the placeholders: a sound's parts within a clip, or the times between frames.
    """

    offset: int
    mask: Bool[Tensor, " length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePrompt:
    """One prompt of P tokens without padding.

    `positions` holds the positions of its tokens and, in the last column, of the first completion token. `tensors` are
    the inputs of the towers for all its media, as transformers' model takes them. `spans` are the places of the media
    of each kind, in order. `media_key` identifies the content of all media; "" if it is unknown.
    """

    token_ids: list[int]
    positions: Int[Tensor, "3 P+1"]
    tensors: Mapping[str, Tensor]
    spans: Mapping[str, Sequence[MediaSpan]]
    media_key: str = ""


def engine_prompts(prompts: PromptBatch, backbone: MediaBackbone) -> list[EnginePrompt]:
    """The prompts of a batch whose media are inputs of the towers.

    Raises:
        ValueError: The media are tower outputs already, or placeholders and feature rows differ in number.
    """
    if not isinstance(prompts.media, MediaInputs):
        raise ValueError("the engine runs towers of its own; it takes prompts before their media were encoded")
    found = []
    for row in range(len(prompts.samples)):
        media = prompts.media.select([row])
        kept = prompts.prompt_mask[row]
        ids = prompts.input_ids[row][kept].cpu()
        following = prompts.next_position[row].expand(3, 1)
        positions = torch.cat([prompts.position_ids[:, row][:, kept], following], dim=1).cpu()
        rows = backbone.feature_rows(media)
        spans = {kind: media_spans(ids, backbone.placeholder_ids[kind], rows[kind]) for kind in rows}
        tensors = {name: tensor.cpu() for name, tensor in backbone.model_inputs(media).items()}
        (key,) = media.keys or ("",)
        found.append(
            EnginePrompt(token_ids=ids.tolist(), positions=positions, tensors=tensors, spans=spans, media_key=key)
        )
    return found


def media_spans(ids: Int[Tensor, " P"], placeholder: int, rows: Int[Tensor, " media"]) -> list[MediaSpan]:
    """The places of all media of a kind in a prompt; each owns the next `rows` of its placeholders.

    >>> clips = media_spans(torch.tensor([1, 7, 7, 1, 7]), 7, torch.tensor([2, 1]))
    >>> [(clip.offset, clip.mask.tolist()) for clip in clips]
    [(1, [True, True]), (4, [True])]

    Raises:
        ValueError: Placeholders and feature rows differ in number.
    """
    places = (ids == placeholder).nonzero().flatten()
    if len(places) != int(rows.sum()):
        raise ValueError(f"the prompt has {len(places)} placeholders {placeholder} for {int(rows.sum())} feature rows")
    spans = []
    for own in places.split(rows.tolist()):
        first, last = int(own[0]), int(own[-1])
        mask = torch.zeros(last + 1 - first, dtype=torch.bool)
        mask[own - first] = True
        spans.append(MediaSpan(offset=first, mask=mask))
    return spans


FRAMES_PER_ROW = 4
"""Spectrogram frames that become one feature row of a sound."""


def without_gaps(prompt: EnginePrompt, sound_window: int) -> EnginePrompt:
    """The same prompt, in which every clip and sound is cut where other tokens separate its placeholders.

    Nothing changes for the towers: each frame pair of a clip attends only to itself, and a feature row of a sound only
    to the rows of its window. So a clip of t frame pairs equals t clips of one pair each, and a sound may be cut
    between windows.

    Args:
        prompt: A prompt whose pictures have no gaps.
        sound_window: Feature rows in an attention window of the sound tower (2 s: 50 in the released checkpoints).

    Raises:
        RolloutError: A clip has a gap within a frame pair, or a sound has a gap within a window.
    """
    tensors, spans = dict(prompt.tensors), dict(prompt.spans)
    if any(not span.mask.all() for span in spans.get("video", ())):
        runs = [_runs(span) for span in spans["video"]]
        tensors[VIDEO_GRID] = _cut_grids(tensors[VIDEO_GRID], runs)
        spans["video"] = [run for each in runs for run in each]
    if any(not span.mask.all() for span in spans.get("audio", ())):
        runs = [_runs(span) for span in spans["audio"]]
        tensors |= _cut_sounds(tensors[AUDIO_FEATURES], tensors[AUDIO_MASK], runs, sound_window)
        spans["audio"] = [run for each in runs for run in each]
    return replace(prompt, tensors=tensors, spans=spans)


def _runs(span: MediaSpan) -> list[MediaSpan]:
    """The parts of a span without a gap."""
    edges = torch.diff(span.mask.int(), prepend=torch.zeros(1), append=torch.zeros(1))
    starts, ends = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
    return [
        MediaSpan(offset=span.offset + start, mask=torch.ones(end - start, dtype=torch.bool))
        for start, end in zip(starts, ends, strict=True)
    ]


def _cut_grids(grids: Tensor, runs: Sequence[Sequence[MediaSpan]]) -> Tensor:
    """Grids [parts, 3] of the parts of clips; the patches stay where they are."""
    cut = []
    for (pairs, height, width), parts in zip(grids.tolist(), runs, strict=True):
        lengths = [len(part.mask) for part in parts]
        rows, uneven = divmod(sum(lengths), pairs)
        if uneven or any(length % rows for length in lengths):
            raise RolloutError(f"a clip of {pairs} frame pairs lies in the prompt in parts of {lengths} tokens")
        cut += [[length // rows, height, width] for length in lengths]
    return torch.tensor(cut, dtype=grids.dtype)


def _cut_sounds(features: Tensor, mask: Tensor, runs: Sequence[Sequence[MediaSpan]], window: int) -> dict[str, Tensor]:
    """Spectrograms [parts, mel bins, frames] of the parts of sounds, with their mask."""
    pieces = []
    for sound, frames, parts in zip(features, mask.sum(-1).tolist(), runs, strict=True):
        lengths = [len(part.mask) for part in parts]
        if any(length % window for length in lengths[:-1]):
            raise RolloutError(f"a sound lies in the prompt in parts of {lengths} tokens; its tower takes {window}")
        ends = [FRAMES_PER_ROW * sum(lengths[: place + 1]) for place in range(len(lengths) - 1)]
        pieces += sound[:, :frames].tensor_split(ends, dim=1)
    sizes = torch.tensor([piece.shape[1] for piece in pieces])
    padded = torch.nn.utils.rnn.pad_sequence([piece.T for piece in pieces], batch_first=True).transpose(1, 2)
    return {AUDIO_FEATURES: padded, AUDIO_MASK: (torch.arange(int(sizes.max())) < sizes[:, None]).to(mask.dtype)}


def medium_name(media_key: str, kind: str, number: int, tensors: Mapping[str, Tensor]) -> str:
    """A name for the `number`-th medium of a kind in a prompt; media with equal names have equal tensors.

    If a key identifies the content of the prompt's media, nothing of it is hashed again. The key was computed when the
    files were read, and hashing pixels would take about a second for each GB in every iteration. A medium then has
    another name in a prompt with further media.

    >>> frames = {"pixels": torch.zeros(2)}
    >>> medium_name("key", "video", 0, frames) == medium_name("key", "video", 0, frames)
    True
    >>> medium_name("key", "video", 0, frames) == medium_name("key", "video", 1, frames)
    False
    """
    if not media_key:
        return content_hash(tensors)
    shapes = [(name, tuple(tensors[name].shape), str(tensors[name].dtype)) for name in sorted(tensors)]
    return blake2b(repr((media_key, kind, number, shapes)).encode(), digest_size=16).hexdigest()


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """A name for a medium, computed from its tensors; equal media have equal names.

    >>> two, three = torch.zeros(2), torch.zeros(3)
    >>> content_hash({"a": two}) == content_hash({"a": two.clone()}) != content_hash({"a": three})
    True
    """
    digest = blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
