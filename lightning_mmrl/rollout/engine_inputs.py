"""Prompts as an engine with towers of its own takes them: token ids, positions, the towers' inputs, where media lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lightning_mmrl.models.encoders import MediaBackbone
from lightning_mmrl.models.families.qwen_media import AUDIO_FEATURES, AUDIO_MASK
from lightning_mmrl.types.batches import PromptBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaSpan:
    """Where one medium lies in a prompt: `mask` [length] is True on its placeholders, counted from `offset`.

    False are tokens between them: the turns of a sound within a clip, or the times written between frames.
    """

    offset: int
    mask: Bool[Tensor, " length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePrompt:
    """One prompt of P tokens without padding.

    `positions` are those of its tokens and, in the last column, of the first completion token. `tensors` are the inputs
    of the towers for all its media, under the names of `MediaInputs`; `spans` are the places of the media of each kind,
    in their order.
    """

    token_ids: list[int]
    positions: Int[Tensor, "3 P+1"]
    tensors: Mapping[str, Tensor]
    spans: Mapping[str, Sequence[MediaSpan]]


def engine_prompts(prompts: PromptBatch, backbone: MediaBackbone) -> list[EnginePrompt]:
    """The prompts of a batch whose media are the towers' inputs.

    Raises:
        ValueError: The media are tower outputs already, or there are not as many placeholders as feature rows.
    """
    if prompts.media.encoded:
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
        tensors = {name: tensor.cpu() for name, tensor in media.tensors.items()}
        found.append(EnginePrompt(token_ids=ids.tolist(), positions=positions, tensors=tensors, spans=spans))
    return found


def media_spans(ids: Int[Tensor, " P"], placeholder: int, rows: Int[Tensor, " media"]) -> list[MediaSpan]:
    """The places of all media of a kind in a prompt; each owns the next `rows` of its placeholders.

    >>> clips = media_spans(torch.tensor([1, 7, 7, 1, 7]), 7, torch.tensor([2, 1]))
    >>> [(clip.offset, clip.mask.tolist()) for clip in clips]
    [(1, [True, True]), (4, [True])]

    Raises:
        ValueError: There are not as many placeholders as feature rows.
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


def named_for_vllm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The towers' inputs under the names and in the shapes of vLLM's models: sounds in a row [mel bins, frames]."""
    named = dict(tensors)
    if AUDIO_FEATURES in named:
        mask = named[AUDIO_MASK].bool()
        named["input_audio_features"] = named.pop(AUDIO_FEATURES).permute(0, 2, 1)[mask].T
        named["audio_feature_lengths"] = mask.sum(-1)
    return named


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """Names a medium by its tensors; equal ones have equal names.

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
