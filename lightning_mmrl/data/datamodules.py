"""DataModules: which split feeds a stage, how much of it, and how it is batched."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import lightning
from torch.utils.data import DataLoader

from lightning_mmrl.data.collate import collate_prompts, collate_targets
from lightning_mmrl.data.prepared import MediaPipeline, OnProgress, PreparedSet
from lightning_mmrl.data.sampler import Draw, ModalityDropout, PassSampler, Variant
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.types.batches import PromptBatch, SftBatch

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
    dropout: ModalityDropout = ModalityDropout()
    limit: int | None = None


class OmniDataModule(lightning.LightningDataModule):
    """Video, audio and text samples of any manifest, for SFT and RL stages alike.

    Args:
        root: Folder of the manifests; media paths are relative to it.
        pipeline: How media become tensors.
        template: Prompt template.
        kind: "sft" yields prompts with targets, "rl" prompts alone.
        feed: What the stage trains on.
        validation: Manifest evaluated during the stage, if any.
        validation_limit: Use only that many validation samples.
        eval_batch_size: Prompts per validation batch.
        on_progress: Told about decoding.
    """

    def __init__(
        self,
        *,
        root: Path,
        pipeline: MediaPipeline,
        template: PromptTemplate,
        kind: StageKind,
        feed: Feed,
        validation: str | None = None,
        validation_limit: int | None = None,
        eval_batch_size: int = 64,
        on_progress: OnProgress | None = None,
    ) -> None:
        super().__init__()
        self.train_set = self._prepared(root, feed.manifest, pipeline, template, kind == "sft")
        _keep_first(self.train_set, feed.limit)
        self.validation_set = self._prepared(root, validation, pipeline, template, False) if validation else None
        if self.validation_set is not None:
            _keep_first(self.validation_set, validation_limit)
        self._feed = feed
        self._kind = kind
        self._pad = pipeline.encoder.pad_token_id
        self._eval_batch_size = eval_batch_size
        self._on_progress = on_progress

    @staticmethod
    def _prepared(
        root: Path, manifest: str, pipeline: MediaPipeline, template: PromptTemplate, supervised: bool
    ) -> PreparedSet:
        return PreparedSet.from_manifest(
            root / manifest, media_root=root, pipeline=pipeline, template=template, supervised=supervised
        )

    def setup(self, stage: str) -> None:
        """Decodes and encodes what the cache lacks."""
        self.train_set.prepare(f"preparing {self._feed.manifest}", self._on_progress)
        if self.validation_set is not None:
            self.validation_set.prepare("preparing validation", self._on_progress)

    def train_dataloader(self) -> "DataLoader[SftBatch] | DataLoader[PromptBatch]":
        """A sized loader over the whole stage."""
        sampler = PassSampler(
            len(self.train_set),
            batch_size=self._feed.batch_size,
            num_batches=self._feed.num_batches,
            seed=self._feed.seed,
            dropout=self._feed.dropout,
        )
        collate = collate_targets if self._kind == "sft" else collate_prompts
        return DataLoader(self.train_set, batch_sampler=sampler, collate_fn=partial(collate, pad_token_id=self._pad))

    def val_dataloader(self) -> "DataLoader[PromptBatch] | list[DataLoader[PromptBatch]]":
        """Validation prompts in manifest order, each once; an empty list without a validation split."""
        if self.validation_set is None:
            return []
        return eval_loader(self.validation_set, batch_size=self._eval_batch_size, pad_token_id=self._pad)


def eval_loader(
    prepared: PreparedSet, *, batch_size: int, pad_token_id: int, variant: Variant = "full"
) -> "DataLoader[PromptBatch]":
    """Every sample of a set once, in order, as prompts."""
    draws = [Draw(index=index, serial=index, variant=variant) for index in range(len(prepared))]
    batches: Sequence[list[Draw]] = [draws[start : start + batch_size] for start in range(0, len(draws), batch_size)]
    return DataLoader(prepared, batch_sampler=batches, collate_fn=partial(collate_prompts, pad_token_id=pad_token_id))


def _keep_first(prepared: PreparedSet, limit: int | None) -> None:
    if limit is not None:
        prepared.samples = prepared.samples[:limit]
