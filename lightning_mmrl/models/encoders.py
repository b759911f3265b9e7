"""Media towers: they run once per prompt, with checks before and after, and the prompts then carry their outputs."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mmrl.models.feature_cache import FeatureCache, digest
from lightning_mmrl.models.integrity import MediaCounter, Rows, check_features, checked_rows
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.types.batches import MediaFeatures, MediaInputs, PromptBatch
from lightning_mmrl.types.costs import GRADIENT
from lightning_mmrl.types.records import MediaKind

TOWER_ROWS = 8_192
"""Feature rows of the prompts that enter the towers together if no gradient is needed: 32,768 patches of a tower that
merges 2 x 2 of them, about 1 GB of activations at Qwen2.5-VL's width. A GPU is busy with a tenth of that, and results
depend on it by rounding alone. A prompt with more rows enters alone."""

UNDECISIVE = ("_name_or_path", "dtype")
"""Settings of a tower that do not change its output, or that the hash of its weights covers anyway."""


class MediaBackbone(MediaCounter, Protocol):
    """The interface of a loaded model for turning media into feature rows."""

    @property
    def towers(self) -> Sequence[nn.Module]: ...

    @property
    def tower_inputs(self) -> Mapping[MediaKind, str]: ...

    def media_features(self, media: MediaInputs) -> Mapping[str, Tensor]: ...

    def model_inputs(self, media: MediaInputs) -> Mapping[str, Tensor]: ...

    def minimal_media(self, kind: MediaKind) -> Mapping[str, Tensor]: ...


class MediaEncoder:
    """Runs the towers of a model on prompts whose placeholders are backed by their media.

    Attributes:
        cache: Outputs of frozen towers on disk, or None if they are not kept; unused while a tower trains.
        tower_prompts: Prompts that entered a tower since `take_counters`.
        cache_hits: Prompts that entered no tower, because their features were on disk.
        gathered: The type in which sharded weights are gathered; None for the type in which they are stored.
        ranks: The ranks that run the towers at the same time. In lockstep every rank enters the towers of all kinds of
            media that any rank has, since weights are gathered from all ranks; a rank without a medium of such a kind
            runs the tower on the smallest possible one.

    Args:
        backbone: The loaded model.
        cache: See the attribute.
    """

    def __init__(self, backbone: MediaBackbone, cache: FeatureCache | None = None) -> None:
        self.backbone = backbone
        self.cache = cache
        self.tower_prompts = 0
        self.cache_hits = 0
        self._rows: Counter[str] = Counter()
        self.gathered: torch.dtype | None = None
        self.ranks: Ranks = ALONE

    @property
    def towers_train(self) -> bool:
        """True if any parameter of a tower requires a gradient."""
        return any(p.requires_grad for tower in self.backbone.towers for p in tower.parameters())

    def features(self, prompts: PromptBatch) -> Mapping[str, Tensor]:
        """Tower outputs [rows, width] by kind, in prompt order; the towers run if the prompts do not carry them.

        Raises:
            MediaError: A placeholder is not backed by a feature row of its own sample; see `checked_rows`.
        """
        return self.with_features(prompts).media.tensors

    def with_features(self, prompts: PromptBatch) -> PromptBatch:
        """The same prompts with tower outputs in place of tower inputs; gradients follow the mode of the caller.

        Raises:
            MediaError: As in `features`.
        """
        if isinstance(prompts.media, MediaFeatures):
            checked_rows(self.backbone, prompts)
            return prompts
        if self.cache is None or self.towers_train:
            return replace(prompts, media=self._run(prompts, prompts.media))
        return replace(prompts, media=self._cached(self.cache, prompts))

    @torch.no_grad()
    def encode(self, prompts: PromptBatch) -> PromptBatch:
        """The same prompts with tower outputs, without gradients, so that sampling and scoring run no tower.

        Raises:
            MediaError: As in `features`.
        """
        return self.with_features(prompts)

    def take_counters(self) -> dict[str, int]:
        """The counters since the last call, by name."""
        counters = {"tower_prompts": self.tower_prompts, "cache_hits": self.cache_hits}
        self.tower_prompts = self.cache_hits = 0
        return counters

    def take_rows(self) -> dict[str, int]:
        """Feature rows that the towers returned since the last call, by the names of `types.costs.Counts`."""
        rows = dict(self._rows)
        self._rows.clear()
        return rows

    def recount(self, rows: Mapping[str, int], *, backward: bool) -> None:
        """Counts rows that were counted already as rows with a backward pass, or as rows without one.

        A pass whose gradient may come later counts without one until it comes. Rows that were taken in between become
        negative here, so that the sum over a step is right.
        """
        for kind, number in rows.items():
            sign = 1 if backward else -1
            self._rows.update({f"{kind}{GRADIENT}": sign * number, kind: -sign * number})

    @torch.no_grad()
    def _cached(self, cache: FeatureCache, prompts: PromptBatch) -> MediaFeatures:
        """Reads features from disk; only prompts whose features are not there enter the towers."""
        rows, device = checked_rows(self.backbone, prompts), prompts.input_ids.device
        keys = prompts.media.keys or ("",) * len(prompts.samples)
        precision = "as their weights" if self.gathered is None else f"gathered in {self.gathered}"
        if torch.is_autocast_enabled(device.type):
            precision = f"autocast {torch.get_autocast_dtype(device.type)}"
        own = [{kind: counts[row] for kind, counts in rows.items() if counts[row]} for row in range(len(keys))]
        known = {row: cache.get(keys[row], precision, own[row]) for row in range(len(keys)) if keys[row] and own[row]}
        found = {row: features for row, features in known.items() if features is not None}
        self.cache_hits += len(found)
        missing = [row for row in range(len(keys)) if own[row] and row not in found]
        if missing or self.ranks.lockstep:
            chosen = prompts.select(missing)
            assert isinstance(chosen.media, MediaInputs)
            fresh = self._run(chosen, chosen.media)
            for place, row in enumerate(missing):
                found[row] = dict(fresh.select([place]).tensors)
                if keys[row]:
                    cache.put(keys[row], precision, found[row])
        joined = {
            kind: torch.cat([found[row][kind].to(device) for row in range(len(keys)) if kind in own[row]])
            for kind in rows
        }
        return _owned(joined, rows, prompts)

    def _run(self, prompts: PromptBatch, inputs: MediaInputs) -> MediaFeatures:
        """Runs the towers: once for all prompts if a gradient is needed, else for a chunk of prompts at a time."""
        rows = checked_rows(self.backbone, prompts)
        chunks = [list(range(len(prompts.samples)))]
        if not (torch.is_grad_enabled() and self.towers_train):
            chunks = _chunks([sum(counts) for counts in zip(*rows.values(), strict=True)]) or chunks
            if self.ranks.lockstep:  # every rank enters as often as the one with the most media
                chunks += [[] for _ in range(self.ranks.max(len(chunks)) - len(chunks))]
        if len(chunks) == 1:
            return self._run_once(prompts, inputs, rows)
        parts = []
        for chunk in chunks:
            own = {kind: tuple(counts[row] for row in chunk) for kind, counts in rows.items()}
            own = {kind: counts for kind, counts in own.items() if any(counts)}
            parts.append(self._run_once(prompts.select(chunk), inputs.select(chunk), own))
        kinds = dict.fromkeys(kind for part in parts for kind in part.tensors)
        joined = {kind: torch.cat([part.tensors[kind] for part in parts if kind in part.tensors]) for kind in kinds}
        return _owned(joined, rows, prompts)

    def _run_once(self, prompts: PromptBatch, inputs: MediaInputs, rows: Rows) -> MediaFeatures:
        lacking: list[MediaKind] = []
        if self.ranks.lockstep:  # kinds that only other ranks have
            kinds = list(self.backbone.medium_keys)
            anywhere = self.ranks.any([kind in rows for kind in kinds])
            lacking = [kind for kind, found in zip(kinds, anywhere, strict=True) if found and kind not in rows]
        if not rows and not lacking:
            return _owned({}, rows, prompts)
        self.tower_prompts += sum(map(any, zip(*rows.values(), strict=True)))
        ending = GRADIENT if torch.is_grad_enabled() and self.towers_train else ""
        self._rows.update({f"{kind}{ending}": sum(counts) for kind, counts in rows.items()})
        device = prompts.input_ids.device
        extra = {
            key: tensor.to(device) for kind in lacking for key, tensor in self.backbone.minimal_media(kind).items()
        }
        features = self.backbone.media_features(replace(inputs, tensors={**inputs.tensors, **extra}))
        # No prompt owns a row of a lacking kind. An output of no rows gives the tower a gradient of zero, not none.
        features = {kind: found[:0] if kind in lacking else found for kind, found in features.items()}
        check_features(features, rows, prompts.samples)
        return _owned(features, rows, prompts)


class TowerGraph:
    """One differentiable run of the towers for all prompts of an iteration with a single update.

        graph = TowerGraph(encoder, prompts)
        rollout = engine.generate(graph.prompts, ...)
        for rows in microbatches:
            loss(policy(... graph.leaf(rows) ...)).backward()
        graph.backward()

    By the chain rule the gradient is the same as with towers inside every microbatch: features enter each microbatch as
    leaves, their gradients add up here, and the sum goes through the towers once. If no microbatch had a medium of some
    kind, the tower of that kind gets no gradient, as with towers inside every microbatch.

    The towers' activations for all prompts are kept until `backward`; activation checkpointing bounds their memory.

    Attributes:
        prompts: The prompts with features that carry no gradient, for sampling and scoring.

    Args:
        encoder: Runs the towers.
        prompts: All prompts of the iteration.
    """

    def __init__(self, encoder: MediaEncoder, prompts: PromptBatch) -> None:
        assert isinstance(prompts.media, MediaInputs), "the towers have run already"
        with torch.enable_grad():
            media = encoder.with_features(prompts).media
        self._outputs = dict(media.tensors)
        self._encoder, self._ranks = encoder, encoder.ranks
        self._rows = {kind: sum(counts) for kind, counts in media.counts.items()} if encoder.towers_train else {}
        encoder.recount(self._rows, backward=False)
        self._gradients: dict[str, Tensor] = {}
        self._spent = False
        detached = {key: output.detach() for key, output in self._outputs.items()}
        self.prompts = replace(prompts, media=replace(media, tensors=detached))

    def leaf(self, rows: list[int]) -> PromptBatch:
        """The given prompts with features whose gradients are collected; a prompt may be used any number of times."""
        self._refuse_if_spent()
        chosen = self.prompts.select(rows)
        leaves = {}
        for key, features in chosen.media.tensors.items():
            leaves[key] = features.detach()
            if self._outputs[key].requires_grad:
                leaves[key].requires_grad_().register_post_accumulate_grad_hook(partial(self._collect, key, rows))
        return replace(chosen, media=replace(chosen.media, tensors=leaves))

    def backward(self) -> None:
        """Sends the collected gradient through the towers into their parameters, and frees the graph."""
        self._refuse_if_spent()
        if self._ranks.lockstep:  # kinds with a gradient on another rank get a zero one here
            keys = sorted(key for key, output in self._outputs.items() if output.requires_grad)
            for key, found in zip(keys, self._ranks.any([key in self._gradients for key in keys]), strict=True):
                if found and key not in self._gradients:
                    self._gradients[key] = torch.zeros_like(self._outputs[key])
        outputs = [self._outputs[key] for key in self._gradients]
        gradients = [gradient.to(self._outputs[key].dtype) for key, gradient in self._gradients.items()]
        ran = {kind: self._rows[kind] for kind in self._gradients if kind in self._rows}
        self._encoder.recount(ran, backward=True)
        self._spent, self._outputs, self._gradients = True, {}, {}
        torch.autograd.backward(outputs, gradients)

    def _collect(self, key: str, rows: list[int], leaf: Tensor) -> None:
        """Adds a microbatch's gradient to the totals of its prompts; in float32 at least, since many are added."""
        assert leaf.grad is not None
        own = self.prompts.media.counts[key]
        if key not in self._gradients:
            dtype = torch.promote_types(leaf.dtype, torch.float32)
            self._gradients[key] = torch.zeros_like(self._outputs[key], dtype=dtype)
        totals = self._gradients[key].split(own)
        for row, piece in zip(rows, leaf.grad.split([own[row] for row in rows]), strict=True):
            totals[row].add_(piece)
        leaf.grad = None

    def _refuse_if_spent(self) -> None:
        if self._spent:
            raise RuntimeError("the towers were differentiated already; another update needs another run of them")


def tower_fingerprint(backbone: MediaBackbone) -> str:
    """Hash of everything that decides the towers' outputs: their configuration, and every weight with its precision."""
    total = hashlib.sha256()
    for tower in backbone.towers:
        if isinstance(tower, PreTrainedModel):
            config = {key: value for key, value in tower.config.to_dict().items() if key not in UNDECISIVE}
            total.update(json.dumps(config, sort_keys=True, default=str).encode())
        total.update(digest(tower.state_dict()))
    return total.hexdigest()


def _chunks(sizes: Sequence[int]) -> list[list[int]]:
    """Neighbors together, as many as have at most `TOWER_ROWS` rows; a prompt with more is alone."""
    chunks: list[list[int]] = []
    room = 0
    for place, size in enumerate(sizes):
        if not chunks or size > room:
            chunks.append([])
            room = TOWER_ROWS
        chunks[-1].append(place)
        room -= size
    return chunks


def _owned(features: Mapping[str, Tensor], rows: Rows, prompts: PromptBatch) -> MediaFeatures:
    """Tower outputs with the number of rows that each prompt owns; zero for a kind that only other ranks have."""
    counts = {kind: rows.get(kind, (0,) * len(prompts.samples)) for kind in features}
    return MediaFeatures(tensors=features, counts=counts, keys=prompts.media.keys)
