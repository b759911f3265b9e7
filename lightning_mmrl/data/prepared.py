"""Prepares a manifest for a model: decodes and encodes media once, tests prompts, and quarantines unusable samples."""

import hashlib
import threading
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, count
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.utils.data import Dataset

from lightning_mmrl.data.collate import EncodedSample
from lightning_mmrl.data.exclusions import DecidedSet, Exclusions
from lightning_mmrl.data.media.asked import unread
from lightning_mmrl.data.media.guard import DecodeTask
from lightning_mmrl.data.media_files import resolve_media
from lightning_mmrl.data.pipeline import MediaPipeline, in_words
from lightning_mmrl.data.sampler import Draw, Variant
from lightning_mmrl.data.targets import encoded_exchanges, exchanges
from lightning_mmrl.errors import DataError, MachineError, MediaError, StageError
from lightning_mmrl.machine import refusal
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.types.media import SAMPLE_RATE_HZ
from lightning_mmrl.types.records import MediaRef, Sample
from lightning_mmrl.workers.pool import CallResult, WorkerError


class DataMonitor(Protocol):
    """Receives the progress of decoding, the samples that were left out, and the warnings of decoders."""

    def progress(self, description: str, done: int, total: int) -> None: ...

    def quarantine(self, manifest: str, num_usable: int, left_out: Sequence["Quarantined"]) -> None: ...

    def leave_out(self, manifest: str, num_samples: int, num_left_out: int, new: Sequence["Quarantined"]) -> None: ...

    def warn(self, manifest: str, warnings: Sequence[str]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A sample that was left out, with the reason."""

    sample_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a sample cannot be used."""

    reason: str


_tokenizing = threading.Lock()
"""Held while a prompt is encoded: a tokenizer may refuse a thread that reads ahead while a validation reads too."""

DecodeAll = Callable[[Sequence[DecodeTask], Callable[[int, CallResult], None]], None]
"""Decodes tasks, and passes each outcome on with the place of its task."""


class PreparedSet(Dataset[EncodedSample]):
    """The samples of a manifest; indexed by `Draw`.

    Their media are either all prepared before the first use, by `prepare`, and `samples` then are the usable ones. Or
    each sample is read when it is drawn, by `read`, and `samples` stay all of them.

    Args:
        samples: Samples in manifest order.
        media_root: Folder of the media paths.
        pipeline: Converts media to tensors.
        template: Prompt template.
        supervised: True if each sample must end with an assistant turn, a target.
        last_only: True if earlier assistant turns are no targets as well.
        exclusions: Earlier decisions about samples to leave out; with None, this set decides for itself.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        media_root: Path,
        pipeline: MediaPipeline,
        template: PromptTemplate,
        supervised: bool,
        last_only: bool = False,
        exclusions: Exclusions | None = None,
    ) -> None:
        self.samples = list(samples)
        self.excluded: tuple[Sample, ...] = ()
        self.quarantined: tuple[Quarantined, ...] = ()
        self._exclusions = exclusions or Exclusions()
        self._prepared = False
        self._root = media_root
        self._pipeline = pipeline
        self._template = template
        self._supervised = supervised
        self._last_only = last_only

    def __len__(self) -> int:
        return len(self.samples)

    def check(self, manifest: str) -> None:
        """Checks every sample without decoding media.

        Raises:
            DataError: The turns of a sample are unusable, or it has a medium that the model does not read.
        """
        encoder = self._pipeline.encoder
        check_turns(manifest, self.samples, self._template, supervised=self._supervised, last_only=self._last_only)
        for sample in self.samples:
            for ref in sample.media:
                if reads := unread(ref.kind, encoder):
                    raise DataError(
                        f"{manifest}: sample {sample.id} has <{ref.kind}> media, and {reads}; choose a model family "
                        f"that reads {ref.kind} or remove the sample"
                    )

    def prepare(self, manifest: str, monitor: DataMonitor) -> None:
        """Encodes all media that are not in the cache, tests every prompt, and moves bad samples to `quarantined`.

        The first call decides whether a sample is used, and later calls follow that decision.

        Raises:
            DataError: A sample fails `check`, a sample that was used before cannot be read now, or no sample is left.
        """
        if self._prepared:
            return
        self.check(manifest)
        which = self._which(manifest)
        decided = self.decided(manifest, monitor)
        reasons = {sample_id: reason for sample_id, reason in decided.items() if reason is not None}
        undecided = [sample for sample in self.samples if sample.id not in decided]
        if undecided and not self._exclusions.decides:
            raise DataError(
                f"{manifest}: rank 0 decided nothing about sample {undecided[0].id} in {self._exclusions.path}; "
                "put the run folder on a file system that all ranks share"
            )
        used = decided.keys() - reasons.keys()
        candidates = [sample for sample in self.samples if sample.id not in reasons]
        faults = self._faults(manifest, monitor, candidates, tried=used)
        for sample_id in used & faults.keys():
            raise unusable_now(manifest, sample_id, faults[sample_id])
        self._set_aside(manifest, {**reasons, **faults})
        if undecided:
            self._exclusions.decide(which, undecided, faults)
        self._prepared = True
        if self.quarantined:
            monitor.quarantine(manifest, len(self.samples), self.quarantined)

    def decided(self, manifest: str, monitor: DataMonitor) -> dict[str, str | None]:
        """Maps ids of samples that were decided on to the reason for leaving the sample out, or None if it is used.

        Raises:
            DataError: The file of the decisions is damaged.
        """
        which = self._which(manifest)
        if void := self._exclusions.void(which, self.samples):
            monitor.warn(manifest, [void])
        return self._exclusions.decided(which, self.samples)

    def decide(self, manifest: str, samples: Sequence[Sample], reasons: Mapping[str, str]) -> None:
        """Saves decisions about samples: those with a reason are left out, the others are used."""
        self._exclusions.decide(self._which(manifest), samples, reasons)

    def read(self, draws: Sequence[Draw], decode: DecodeAll) -> tuple[list[EncodedSample | Fault], list[str]]:
        """Decodes and encodes what is not in the cache, and returns each sample, with the warnings of decoders.

        Raises:
            StageError: The checkpoint is at fault.
            MachineError: The machine is.
        """
        fresh: dict[str, dict[str, Tensor]] = {}
        by_ref, warnings = self._encode_media([self.samples[draw.index] for draw in draws], decode, fresh=fresh)
        found: list[EncodedSample | Fault] = []
        for draw in draws:
            sample = self.samples[draw.index]
            reason = next((by_ref[ref] for ref in sample.media if ref in by_ref), None)
            encoded = self._tried(sample, draw.variant, fresh) if reason is None else reason
            found.append(Fault(reason=encoded) if isinstance(encoded, str) else encoded)
        return found, warnings

    def faults(self, manifest: str, monitor: DataMonitor) -> dict[str, str]:
        """Maps sample ids to the reason why `prepare` would leave the sample out if it decided now."""
        return self._faults(manifest, monitor, self.samples, tried=())

    def __getitem__(self, draw: Draw) -> EncodedSample:
        sample = self.samples[draw.index]
        try:
            return self._encoded(sample, draw.variant)
        except Exception as error:
            if refusal(error) is not None:  # the machine failed, not the sample
                raise
            # Converted, because a loop over a loader would take a StopIteration for the end of the data.
            raise DataError(f"sample {sample.id}: {in_words(error)}") from error

    def _encoded(
        self, sample: Sample, variant: Variant, fresh: Mapping[str, dict[str, Tensor]] | None = None
    ) -> EncodedSample:
        """Encodes a sample; `fresh` holds encoded media by key, which need not be in the cache."""
        encoder = self._pipeline.encoder
        found = exchanges(sample, self._template, supervised=self._supervised, last_only=self._last_only)
        media, keys = [], []
        for ref in sample.media:
            path = resolve_media(ref.path, self._root, f"medium {ref.path}")
            key, task = self._pipeline.keyed_task(path, ref, self._root)
            encoded = dict(fresh[key]) if fresh and key in fresh else self._pipeline.fetched(key, task)
            shown = self._pipeline.altered(encoded, ref.kind, variant)
            media.append(shown)
            keys.append(key if shown is encoded else f"{key}/{variant}")
        with _tokenizing:
            answered = encoded_exchanges(encoder, self._template.settings, found, media)
        parts = []
        for each in answered:
            if not self._banned.isdisjoint(each.ids):
                raise DataError(
                    "its target holds a token that stands for media, which the model can never say; take it out of the "
                    "assistant turn"
                )
            num, limit = int(each.prompt["next_position"]) + len(each.ids), encoder.max_positions
            if each.ids and num > limit:
                raise DataError(f"its prompt and target take {num} positions, and the model has {limit}; shorten them")
            own = keys[: each.num_media]
            part = EncodedSample(
                sample=sample,
                prompt=each.prompt,
                target_ids=tuple(each.ids),
                target_mask=tuple(each.mask),
                media_key=hashlib.sha256("\n".join(own).encode()).hexdigest() if own else "",
            )
            parts.append(part)
        return replace(parts[0], later=tuple(parts[1:]))

    @cached_property
    def _banned(self) -> frozenset[int]:
        return frozenset(self._pipeline.encoder.banned_token_ids())

    @property
    def _use(self) -> dict[str, object]:
        """The settings that decide, besides the files, whether a sample can be used.

        If one of them changes, all samples are judged again. So each is listed explicitly, and a new setting is added
        only if it affects the decision.
        """
        encoder, media, prompt = self._pipeline.encoder, self._pipeline.settings, self._template.settings
        return {
            "supervised": self._supervised,
            "num_frames": media.num_frames,
            **media.chosen,
            "sample_rate_hz": SAMPLE_RATE_HZ,
            "max_duration_s": media.max_duration_s,
            "max_pixels": media.max_pixels,
            "max_bytes": media.max_bytes,
            "family": encoder.family,
            "processor": encoder.fingerprint,
            "max_positions": encoder.max_positions,
            "system": prompt.system,
            "suffix": prompt.suffix,
            "prefill": prompt.prefill,
            **({} if prompt.raw is None else {"raw": prompt.raw}),
            **({"prefix": prompt.prefix} if prompt.prefix else {}),
            **({"mask_history": True} if self._last_only else {}),
        }

    def _which(self, manifest: str) -> DecidedSet:
        return DecidedSet(manifest=manifest, root=self._root, use=self._use)

    def _faults(
        self, manifest: str, monitor: DataMonitor, samples: Sequence[Sample], tried: Collection[str]
    ) -> dict[str, str]:
        """Maps ids of unusable samples to the reason; prompts of samples in `tried` are not tested again."""
        progress = partial(monitor.progress, f"preparing {manifest}")
        by_ref, warnings = self._encode_media(samples, self._pipeline.decoder.decode_all, progress=progress)
        if warnings:
            monitor.warn(manifest, warnings)
        found: dict[str, str] = {}
        pending = sum(sample.id not in tried for sample in samples)
        done = count(1)
        for sample in samples:
            reason = next((by_ref[ref] for ref in sample.media if ref in by_ref), None)
            if sample.id not in tried:
                if reason is None:
                    encoded = self._tried(sample, "full")
                    reason = encoded if isinstance(encoded, str) else None
                monitor.progress(f"trying prompts of {manifest}", next(done), pending)
            if reason is not None:
                found[sample.id] = reason
        return found

    def _tried(
        self, sample: Sample, variant: Variant, fresh: Mapping[str, dict[str, Tensor]] | None = None
    ) -> EncodedSample | str:
        """The encoded sample, or why it cannot be encoded."""
        try:
            return self._encoded(sample, variant, fresh)
        except (StageError, MachineError, WorkerError):  # the checkpoint or the machine is at fault, not the sample
            raise
        except Exception as error:
            if refusal(error) is not None:
                raise
            return in_words(error)

    def _encode_media(
        self,
        samples: Sequence[Sample],
        decode: DecodeAll,
        *,
        progress: Callable[[int, int], None] | None = None,
        fresh: dict[str, dict[str, Tensor]] | None = None,
    ) -> tuple[dict[MediaRef, str], list[str]]:
        """Decodes and encodes each medium that is not in the cache, and adds it to `fresh` by key.

        Returns:
            The reason for each failure, and what decoders found odd.
        """
        keys: dict[MediaRef, str] = {}
        failures: dict[MediaRef, str] = {}
        missing: dict[str, DecodeTask] = {}
        for ref in dict.fromkeys(ref for sample in samples for ref in sample.media):
            try:
                path = resolve_media(ref.path, self._root, f"medium {ref.path}")
                keys[ref], task = self._pipeline.keyed_task(path, ref, self._root)
            except MediaError as error:
                failures[ref] = str(error)
            else:
                missing[keys[ref]] = task
        missing = {key: task for key, task in missing.items() if key not in self._pipeline.cache}
        order, tasks = list(missing), list(missing.values())
        reasons: dict[str, str] = {}
        warnings: list[str] = []
        done = count(1)

        def store(index: int, outcome: CallResult) -> None:
            key = order[index]
            try:
                encoded = self._pipeline.encode_file(tasks[index].path, outcome)
            except MediaError as error:
                reasons[key] = str(error)
            else:
                warnings.extend(outcome.value.warnings)
                self._pipeline.cache.put(key, encoded)
                if fresh is not None:
                    fresh[key] = encoded
            if progress is not None:
                progress(next(done), len(tasks))

        decode(tasks, store)
        failures.update({ref: reasons[key] for ref, key in keys.items() if key in reasons})
        return failures, list(dict.fromkeys(warnings))

    def _set_aside(self, manifest: str, reasons: Mapping[str, str]) -> None:
        if not reasons:
            return
        usable = [sample for sample in self.samples if sample.id not in reasons]
        bad = [sample for sample in self.samples if sample.id in reasons]
        if not usable:
            raise DataError(f"{manifest}: all {len(bad)} samples cannot be used; the first: {reasons[bad[0].id]}")
        self.samples, self.excluded = usable, tuple(bad)
        self.quarantined = tuple(Quarantined(sample_id=sample.id, reason=reasons[sample.id]) for sample in bad)


def unusable_now(manifest: str, sample_id: str, reason: str) -> DataError:
    """The error for a sample that the run used before."""
    return DataError(
        f"{manifest}: sample {sample_id} was used before in this run and cannot be now: {reason}; restore the file, "
        "without which the run cannot continue as it began, or set a new run_name"
    )


def check_turns(
    manifest: str, samples: Sequence[Sample], template: PromptTemplate, *, supervised: bool, last_only: bool = False
) -> None:
    """Checks the turns of samples that will be prompts, or prompts with targets if `supervised`.

    Raises:
        DataError: A sample has no user turn or no target, or a target does not start with the prefill.
    """
    for sample in samples:
        try:
            exchanges(sample, template, supervised=supervised, last_only=last_only)
        except DataError as error:
            raise DataError(f"{manifest}: {error}") from error


class JoinedSets(Dataset[EncodedSample]):
    """Prepared sets joined one after the other; the index of a `Draw` counts through all of them."""

    def __init__(self, sets: Sequence[PreparedSet]) -> None:
        self._sets = tuple(sets)
        self._starts = [0, *accumulate(len(each) for each in sets)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, draw: Draw) -> EncodedSample:
        number = bisect_right(self._starts, draw.index) - 1
        return self._sets[number][replace(draw, index=draw.index - self._starts[number])]
