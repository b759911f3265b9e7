"""DataModules: which split feeds a stage, how much of it, and how it is batched."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning
from torch.utils.data import DataLoader

from lightning_mmrl.data.collate import collate_prompts, collate_targets
from lightning_mmrl.data.prepared import DataMonitor, MediaPipeline, PreparedSet
from lightning_mmrl.data.sampler import Draw, ModalityDropout, PassSampler, Variant
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.prompts.template import PromptTemplate

StageKind = Literal["sft", "rl"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """What a stage trains on.

    Attributes:
        manifest: File name of the training split, below the dataset's root.
        batch_size: Samples per batch: per optimizer step (SFT) or per iteration (RL).
        num_batches: Batches of the whole stage.
        seed: Seed of the order and of the modality dropout.
        dropout: Modality dropout.
        limit: Use only the first samples of the manifest.
    """

    manifest: str
    batch_size: int
    num_batches: int
    seed: int = 0
    dropout: ModalityDropout = field(default_factory=ModalityDropout)
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationFeed:
    """What a stage is validated on.

    Attributes:
        manifest: File name of the split, below the dataset's root.
        batch_size: Prompts per batch.
        limit: Use only the first samples of the manifest.
    """

    manifest: str
    batch_size: int = 64
    limit: int | None = None


class OmniDataModule(lightning.LightningDataModule):
    """Video, audio and text samples of any manifest, for SFT and RL stages alike.

    Args:
        root: Folder of the manifests; media paths are relative to it.
        pipeline: How media become tensors.
        template: Prompt template.
        kind: "sft" yields prompts with targets, "rl" prompts alone.
        feed: What the stage trains on.
        validation: What the stage is validated on, if anything.
        monitor: Hears of decoding.
    """

    def __init__(
        self,
        *,
        root: Path,
        pipeline: MediaPipeline,
        template: PromptTemplate,
        kind: StageKind,
        feed: Feed,
        validation: ValidationFeed | None = None,
        monitor: DataMonitor,
    ) -> None:
        super().__init__()
        self._feed = feed
        self._validation = validation
        self._kind = kind
        self._pad = pipeline.encoder.pad_token_id
        self._monitor = monitor

        def prepared(manifest: str, supervised: bool, limit: int | None) -> PreparedSet:
            samples = read_manifest(root / manifest, root)[:limit]
            return PreparedSet(samples, media_root=root, pipeline=pipeline, template=template, supervised=supervised)

        self.train_set = prepared(feed.manifest, kind == "sft", feed.limit)
        self.validation_set = prepared(validation.manifest, False, validation.limit) if validation else None

    def setup(self, stage: str) -> None:
        """Decodes and encodes what the cache lacks."""
        self.train_set.prepare(self._feed.manifest, self._monitor)
        if self.validation_set is not None and self._validation is not None:
            self.validation_set.prepare(self._validation.manifest, self._monitor)

    def train_dataloader(self) -> "DataLoader[Any]":
        """A sized loader of `SftBatch` or `PromptBatch` over the whole stage."""
        sampler = PassSampler(
            len(self.train_set),
            batch_size=self._feed.batch_size,
            num_batches=self._feed.num_batches,
            seed=self._feed.seed,
            dropout=self._feed.dropout,
        )
        collate = collate_targets if self._kind == "sft" else collate_prompts
        return DataLoader(self.train_set, batch_sampler=sampler, collate_fn=partial(collate, pad_token_id=self._pad))

    def val_dataloader(self) -> "DataLoader[Any] | list[DataLoader[Any]]":
        """Validation prompts in manifest order, each once; an empty list without a validation split."""
        if self.validation_set is None or self._validation is None:
            return []
        return eval_loader(self.validation_set, batch_size=self._validation.batch_size, pad_token_id=self._pad)


def eval_loader(
    prepared: PreparedSet, *, batch_size: int, pad_token_id: int, variant: Variant = "full"
) -> "DataLoader[Any]":
    """Every sample of a set once, in order, in `PromptBatch` batches."""
    draws = [Draw(index=index, serial=index, variant=variant) for index in range(len(prepared))]
    batches: Sequence[list[Draw]] = [draws[start : start + batch_size] for start in range(0, len(draws), batch_size)]
    return DataLoader(prepared, batch_sampler=batches, collate_fn=partial(collate_prompts, pad_token_id=pad_token_id))
