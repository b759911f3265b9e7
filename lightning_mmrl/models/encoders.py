"""Media towers: run once per prompt, checked before and after, their outputs carried by the prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_mmrl.models.integrity import MediaCounter, Rows, check_features, checked_rows
from lightning_mmrl.types.batches import MediaInputs, PromptBatch


class MediaBackbone(MediaCounter, Protocol):
    """The parts of a loaded model that turn media into feature rows."""

    @property
    def towers(self) -> Sequence[nn.Module]: ...

    def media_features(self, media: MediaInputs) -> Mapping[str, Tensor]: ...


class MediaEncoder:
    """Runs the towers of a model on prompts whose placeholders are backed by their media.

    Attributes:
        tower_prompts: Prompts that entered a tower since `take_counters`.

    Args:
        backbone: The loaded model.
    """

    def __init__(self, backbone: MediaBackbone) -> None:
        self.backbone = backbone
        self.tower_prompts = 0

    @property
    def towers_train(self) -> bool:
        """True if any parameter of a tower requires a gradient."""
        return any(p.requires_grad for tower in self.backbone.towers for p in tower.parameters())

    def features(self, prompts: PromptBatch) -> Mapping[str, Tensor]:
        """Tower outputs [rows, width] by kind, in prompt order: those that the prompts carry, or else of the towers.

        Raises:
            MediaError: A placeholder is not backed by a feature row of its own sample; see `checked_rows`.
        """
        rows = checked_rows(self.backbone, prompts)
        return prompts.media.features or self._run(prompts, rows)

    @torch.no_grad()
    def encode(self, prompts: PromptBatch) -> PromptBatch:
        """The same prompts with tower outputs, without gradients, in place of tower inputs: later passes run no tower.

        Raises:
            MediaError: As in `features`.
        """
        rows = checked_rows(self.backbone, prompts)
        if prompts.media.features:
            return prompts
        return with_features(prompts, self._run(prompts, rows), rows)

    def take_counters(self) -> dict[str, int]:
        """What has happened since the last call."""
        counters = {"tower_prompts": self.tower_prompts}
        self.tower_prompts = 0
        return counters

    def _run(self, prompts: PromptBatch, rows: Rows) -> Mapping[str, Tensor]:
        if not rows:
            return {}
        self.tower_prompts += sum(map(any, zip(*rows.values(), strict=True)))
        features = self.backbone.media_features(prompts.media)
        check_features(features, rows, prompts.samples)
        return features


def with_features(prompts: PromptBatch, features: Mapping[str, Tensor], rows: Rows) -> PromptBatch:
    """The same prompts with these tower outputs, of which each prompt owns `rows`."""
    return replace(prompts, media=MediaInputs.of_features(features, rows, prompts.media.keys))
