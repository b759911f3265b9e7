"""DataModules: they read the sources of a stage, mix them and batch them."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, get_args

import lightning
import numpy as np

from lightning_mmrl.data.collate import EncodedSample, collate_pairs, collate_prompts, collate_targets
from lightning_mmrl.data.exclusions import Exclusions
from lightning_mmrl.data.in_order import eval_loader
from lightning_mmrl.data.manifest import Indexing
from lightning_mmrl.data.pipeline import MediaPipeline
from lightning_mmrl.data.prepared import DataMonitor, PreparedSet
from lightning_mmrl.data.sampler import DrawSampler, Share, SourceRows
from lightning_mmrl.data.samples import KIND_BITS, NO_SOLUTION, first_medium, samples_of
from lightning_mmrl.data.sources import load_source
from lightning_mmrl.data.stream import StreamedSets, StreamLoader, next_share, read_now
from lightning_mmrl.data.written_targets import with_targets
from lightning_mmrl.errors import ConfigError, DataError, StageError
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.settings.data import ReadAheadSettings, SourceSettings
from lightning_mmrl.settings.lessons import Lesson, lesson_of, with_target
from lightning_mmrl.settings.rules import check_rules
from lightning_mmrl.settings.run import EvaluationSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.types.batches import PromptBatch, SftBatch
from lightning_mmrl.types.records import MediaKind, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """The training data of a stage.

    Attributes:
        settings: The stage's steps and data. Each step consumes one batch. If a batch is larger than the dataset, it
            contains samples of several passes.
        supervised: True for prompts with targets.
        sources: Manifests to draw from, in proportion to their samples or by weight; error messages use their names.
        seed: Seed of the order and of the modality dropout.
        matcher: Label set that merges synonyms for the balance; a solution outside the set counts as a separate label.
            With None, every distinct solution is a separate label.
        endless: Whether something else than the number of steps ends the stage.
        num_upcoming: Batches after the one in hand that the stage needs to see; `OmniDataModule.upcoming` has them.
    """

    settings: StageSettings
    supervised: bool
    sources: Mapping[str, SourceSettings]
    seed: int = 0
    matcher: LabelMatcher | None = None
    endless: bool = False
    num_upcoming: int = 0

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("a stage has no source of data; give a manifest or at least one source")
        check_rules(self.settings.data, "data")
        for name, source in self.sources.items():
            check_rules(source, f"sources.{name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationFeed:
    """The validation data of a stage: a manifest in its folder, and how many prompts are answered at once."""

    source: SourceSettings
    settings: EvaluationSettings

    def __post_init__(self) -> None:
        check_rules(self.source, "validation")


class OmniDataModule(lightning.LightningDataModule):
    """Samples with any kind of media, of one or several sources, for SFT and RL stages.

    A batch may mix kinds: clips with and without sound, images, sounds and text. The presets below restrict `kinds`
    and change nothing else.

    Samples are read when they are drawn, ahead of the step that takes them, and decided on when they are first read;
    see `StreamLoader`.

    A batch counts as consumed when Lightning passes it to the training step, however far a loader has read ahead. The
    state of the module is the number of consumed batches, and a resumed stage continues with the next batch.

    Args:
        pipeline: Converts media to tensors.
        template: Prompt template.
        feed: Training data.
        validation: Validation data, if any.
        monitor: Receives progress and warnings of decoding.
        exclusions: Earlier decisions about samples to leave out; with None, this run decides for itself.
        ranks: The processes that train together.
        read_ahead: How samples are read while the model trains; None for the defaults.

    Raises:
        DataError: A manifest is unusable, or has media that this module or the model does not accept.
    """

    kinds: ClassVar[frozenset[MediaKind]] = frozenset(get_args(MediaKind))
    """Kinds of media that samples may have."""

    def __init__(
        self,
        *,
        pipeline: MediaPipeline,
        template: PromptTemplate,
        feed: Feed,
        validation: ValidationFeed | None = None,
        monitor: DataMonitor,
        exclusions: Exclusions | None = None,
        ranks: Ranks = ALONE,
        read_ahead: ReadAheadSettings | None = None,
    ) -> None:
        super().__init__()
        self._feed = feed
        self._validation = validation
        self._supervised = feed.supervised
        self._lesson = lesson_of(feed.settings)
        self._pad = pipeline.encoder.pad_token_id
        self._monitor = monitor
        self._ranks = ranks
        self._decoder = pipeline.decoder
        self._read_ahead = read_ahead or ReadAheadSettings()
        self._streamed: StreamedSets | None = None
        self._validated: StreamedSets | None = None
        self._loader: StreamLoader | None = None
        self._sampler: DrawSampler | None = None
        self._further: DrawSampler | None = None
        self._num_refills = 0

        opened = partial(self.open_source, pipeline=pipeline, template=template, exclusions=exclusions)
        train = partial(opened, supervised=self._supervised, lesson=self._lesson)
        self.train_sets = tuple(train(with_target(feed.settings, source)) for source in feed.sources.values())
        self.validation_set = opened(validation.source, supervised=False) if validation else None
        if feed.settings.data.balance is not None:
            for source, found in zip(feed.sources.values(), self.train_sets, strict=True):
                balance_labels(source.manifest, found.samples, feed.matcher)

    @classmethod
    def open_source(
        cls,
        source: SourceSettings,
        *,
        pipeline: MediaPipeline,
        template: PromptTemplate,
        exclusions: Exclusions | None,
        supervised: bool,
        lesson: Lesson = "turns",
    ) -> PreparedSet:
        """Reads and checks the samples of a source; no medium is decoded yet.

        Raises:
            DataError: The manifest is unusable, or has media that this module or the model does not accept.
        """
        indexing = Indexing(folder=pipeline.cache.directory)
        samples = load_source(source.path, source.media_folder, source.format, indexing).samples[: source.limit]
        samples = with_targets(samples, source.target)
        cls.check_kinds(source.manifest, samples)
        found = PreparedSet(
            samples,
            media_root=source.media_folder,
            pipeline=pipeline,
            template=template,
            supervised=supervised,
            lesson=lesson,
            exclusions=exclusions,
        )
        found.check(source.manifest)
        return found

    def setup(self, stage: str) -> None:
        """Takes up earlier decisions about samples, and creates the sampler; later calls do nothing."""
        if self._sampler is None:
            manifests = [source.manifest for source in self._feed.sources.values()]
            self._streamed = StreamedSets(list(zip(manifests, self.train_sets, strict=True)), self._monitor)
            num_batches = sys.maxsize if self._feed.endless else self._feed.settings.steps
            self._sampler = self._new_sampler(self._feed.seed, num_batches)
            if self.validation_set is not None and self._validation is not None:
                validated = (self._validation.source.manifest, self.validation_set)
                self._validated = StreamedSets([validated], self._monitor)

    @property
    def streamed(self) -> StreamedSets:
        """The training samples, with what was decided about them."""
        if self._streamed is None:
            raise RuntimeError("the data are not prepared; call setup() first")
        return self._streamed

    @property
    def sampler(self) -> DrawSampler:
        """Determines the order of the samples, and counts the consumed batches."""
        if self._sampler is None:
            raise RuntimeError("the data are not prepared; call setup() first")
        return self._sampler

    def train_dataloader(self) -> StreamLoader:
        """A sized loader of `SftBatch` or `PromptBatch` over the remaining batches of the stage."""
        self._loader = StreamLoader(
            self.streamed,
            self.sampler,
            partial(self._collated, supervised=self._supervised),
            ranks=self._ranks,
            decoder=self._decoder,
            settings=self._read_ahead,
            num_upcoming=self._feed.num_upcoming,
        )
        return self._loader

    def val_dataloader(self) -> StreamLoader | list[StreamLoader]:
        """A loader that yields each validation prompt once, in manifest order; an empty list if there are none."""
        if self._validated is None or self._validation is None:
            return []
        return eval_loader(
            self._validated,
            self._collated,
            batch_size=self._validation.settings.batch_size,
            ranks=self._ranks,
            decoder=self._decoder,
            settings=self._read_ahead,
        )

    def _collated(self, items: Sequence[EncodedSample], supervised: bool = False) -> SftBatch | PromptBatch:
        """A batch of samples, in page-locked memory if it goes to a GPU."""
        targets = collate_pairs if self._lesson == "pair" else collate_targets
        batch = (targets if supervised else collate_prompts)(items, pad_token_id=self._pad)
        to_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return batch.pinned() if to_gpu else batch

    def num_validated(self) -> int:
        """Number of validation samples that are not left out, of all ranks together; final after one validation."""
        if self._validated is None:
            return 0
        return len(self._validated) - len(self._validated.reasons)

    def waited_s(self) -> float:
        """Seconds that this rank waited for the last training batch, apart from refills."""
        return 0.0 if self._loader is None else self._loader.waited_s

    def upcoming(self) -> list[Any]:
        """This rank's shares of the training batches after the one in hand, on the host and not consumed."""
        return [] if self._loader is None else list(self._loader.upcoming)

    def refill_batch(self) -> PromptBatch:
        """This rank's share of the next batch of extra prompts, for an iteration whose own batch does not suffice.

        Extra prompts come from the same sources with the same weights, but in a separate order: the n-th extra batch
        depends only on the seed and n, and the loader's order does not depend on the number of extra batches.
        """
        if self._further is None:
            digest = hashlib.blake2b(f"{self._feed.seed}/refill".encode(), digest_size=4).digest()
            self._further = self._new_sampler(int.from_bytes(digest, "little"), sys.maxsize)
            self._further.advance(self._num_refills)
            self._further.rewind()
        self._num_refills += 1
        found = next_share(self.streamed, self._further, read_now(self.streamed, self._decoder), self._ranks)
        assert found is not None, "an order of sys.maxsize batches has no end"
        return collate_prompts(found, pad_token_id=self._pad)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Counts a training batch as consumed."""
        if self.trainer is not None and self.trainer.training:
            self.sampler.advance()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, and a fingerprint of the samples."""
        return {"sampler": self.sampler.state_dict(), "samples": self._fingerprint, "refills": self._num_refills}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues after the consumed batches.

        Raises:
            StageError: The state belongs to other samples or to another configuration.
        """
        if state_dict["samples"] != self._fingerprint:
            names = ", ".join(source.manifest for source in self._feed.sources.values())
            raise StageError(
                f"cannot resume: the samples of {names} have changed; restore them or start the stage anew"
            )
        self.sampler.load_state_dict(state_dict["sampler"])
        self._num_refills, self._further = state_dict["refills"], None

    @property
    def _share(self) -> Share:
        """This rank's share of every batch."""
        if self.trainer is None:
            return Share()
        return Share(rank=self.trainer.global_rank, world_size=self.trainer.world_size)

    def _new_sampler(self, seed: int, num_batches: int) -> DrawSampler:
        rows = [
            SourceRows(
                num_samples=len(found),
                settings=source,
                labels=balance_labels(source.manifest, found.samples, self._feed.matcher)
                if self._feed.settings.data.balance
                else None,
            )
            for source, found in zip(self._feed.sources.values(), self.train_sets, strict=True)
        ]
        return DrawSampler(
            rows,
            settings=self._feed.settings.data,
            num_batches=num_batches,
            seed=seed,
            share=self._share,
            rejected=self.streamed.reasons,
        )

    @cached_property
    def _fingerprint(self) -> str:
        """The hash of the lists of all ids, as Python writes them."""
        digest = hashlib.blake2b(digest_size=8)
        for number, found in enumerate(self.train_sets):
            digest.update(b", [" if number else b"[[")
            for place, name in enumerate(samples_of(found.samples).ids()):
                digest.update((f", {name!r}" if place else repr(name)).encode())
            digest.update(b"]")
        digest.update(b"]")
        return digest.hexdigest()

    @classmethod
    def check_kinds(cls, manifest: str, samples: Sequence[Sample]) -> None:
        """Checks the media kinds of samples.

        Raises:
            DataError: A sample has a medium that this module does not accept.
        """
        bits = int(np.bitwise_or.reduce(samples_of(samples).kinds(), initial=0))
        present: set[MediaKind] = {kind for kind, bit in KIND_BITS.items() if bits & bit}
        if (found := first_medium(samples, present - cls.kinds)) is None:
            return
        sample, kind = found
        taker = next(module.__name__ for module in _BY_KINDS if present <= module.kinds)
        raise DataError(
            f"{manifest}: sample {sample.id} has <{kind}> media, which {cls.__name__} does not take; use {taker}"
        )


class ImageDataModule(OmniDataModule):
    """Images and text."""

    kinds = frozenset({"image"})


class VideoDataModule(OmniDataModule):
    """Clips and text; a clip's sound is included if the sample also has an <audio> tag."""

    kinds = frozenset({"video", "audio"})


class AudioDataModule(OmniDataModule):
    """Sound and text."""

    kinds = frozenset({"audio"})


class TextDataModule(OmniDataModule):
    """Text only."""

    kinds = frozenset()


_BY_KINDS = (TextDataModule, ImageDataModule, AudioDataModule, VideoDataModule, OmniDataModule)


def balance_labels(manifest: str, samples: Sequence[Sample], matcher: LabelMatcher | None) -> tuple[str, ...]:
    """The label of each sample, for drawing all labels equally often.

    Raises:
        DataError: A sample has no solution.
    """
    found = samples_of(samples).solutions()
    missing = np.flatnonzero(found.codes == NO_SOLUTION)
    if len(missing):
        raise DataError(
            f"{manifest}: sample {samples[int(missing[0])].id} has no solution, and balance: label draws by it; add "
            "the solution or set balance: null"
        )
    named = {code: None if matcher is None else matcher.match(text) for code, text in found.texts.items()}
    labels = {code: text if (label := named[code]) is None else label for code, text in found.texts.items()}
    return tuple(labels[code] for code in found.codes.tolist())
