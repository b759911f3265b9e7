"""A manifest made ready for a model: media decoded and encoded once, prompts tried, what fails left out by name."""

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, count
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.utils.data import Dataset

from lightning_mmrl.data.collate import EncodedSample
from lightning_mmrl.data.exclusions import DecidedSet, Exclusions
from lightning_mmrl.data.media.asked import unread
from lightning_mmrl.data.media.guard import DecodeTask
from lightning_mmrl.data.pipeline import MediaPipeline, in_words
from lightning_mmrl.data.sampler import Draw, Variant
from lightning_mmrl.data.schema import resolve_media
from lightning_mmrl.errors import DataError, MediaError, StageError
from lightning_mmrl.machine import refusal
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.types.media import SAMPLE_RATE_HZ
from lightning_mmrl.types.records import MediaRef, Message, Sample
from lightning_mmrl.workers.pool import CallResult


class DataMonitor(Protocol):
    """Hears of decoding: how far it is, which samples were left out, and what decoders find odd."""

    def progress(self, description: str, done: int, total: int) -> None: ...

    def quarantine(self, manifest: str, num_usable: int, left_out: Sequence["Quarantined"]) -> None: ...

    def warn(self, manifest: str, warnings: Sequence[str]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A sample left out, and why."""

    sample_id: str
    reason: str


class PreparedSet(Dataset[EncodedSample]):
    """The usable samples of a manifest; indexed by `Draw`.

    Args:
        samples: Samples in manifest order.
        media_root: Folder that media paths are relative to.
        pipeline: How media become tensors.
        template: Prompt template.
        supervised: True if each sample must end with an assistant turn, the target.
        exclusions: Which samples were left out before; None decides afresh.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        media_root: Path,
        pipeline: MediaPipeline,
        template: PromptTemplate,
        supervised: bool,
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

    def __len__(self) -> int:
        return len(self.samples)

    def check(self, manifest: str) -> None:
        """Looks at every sample without decoding anything.

        Raises:
            DataError: A sample's turns cannot be used, or it has a medium that the model does not read.
        """
        encoder = self._pipeline.encoder
        check_turns(manifest, self.samples, self._template, supervised=self._supervised)
        for sample in self.samples:
            for ref in sample.media:
                if reads := unread(ref.kind, encoder):
                    raise DataError(
                        f"{manifest}: sample {sample.id} has <{ref.kind}> media, and {reads}; choose a model family "
                        f"that reads {ref.kind} or remove the sample"
                    )

    def prepare(self, manifest: str, monitor: DataMonitor) -> None:
        """Decodes and encodes what the cache lacks, tries every prompt, and moves what cannot be used to `quarantined`.

        Whether a sample is used is decided once, here; later it is as it was decided.

        Raises:
            DataError: A sample cannot be used at all, was used before and cannot be read now, or no sample is left.
        """
        if self._prepared:
            return
        self.check(manifest)
        which = DecidedSet(manifest=manifest, root=self._root, use=self._use)
        if void := self._exclusions.void(which, self.samples):
            monitor.warn(manifest, [void])
        decided = self._exclusions.decided(which, self.samples)
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
            raise DataError(
                f"{manifest}: sample {sample_id} was used before in this run and cannot be now: {faults[sample_id]}; "
                "restore the file, without which the run cannot continue as it began, or set a new run_name"
            )
        self._set_aside(manifest, {**reasons, **faults})
        if undecided:
            self._exclusions.decide(which, undecided, faults)
        self._prepared = True
        if self.quarantined:
            monitor.quarantine(manifest, len(self.samples), self.quarantined)

    def faults(self, manifest: str, monitor: DataMonitor) -> dict[str, str]:
        """By id, why a sample cannot be used: what `prepare` would leave out if it decided now."""
        return self._faults(manifest, monitor, self.samples, tried=())

    def __getitem__(self, draw: Draw) -> EncodedSample:
        sample = self.samples[draw.index]
        try:
            return self._encoded(sample, draw.variant)
        except Exception as error:
            if refusal(error) is not None:  # it says nothing of the sample
                raise
            # Not as it is: a loop over a loader takes a StopIteration for the end of the data.
            raise DataError(f"sample {sample.id}: {in_words(error)}") from error

    def _encoded(self, sample: Sample, variant: Variant) -> EncodedSample:
        encoder = self._pipeline.encoder
        turns, target = _turns(sample, self._template, self._supervised)
        media, keys = [], []
        for ref in sample.media:
            key, shown = self._load(ref, variant)
            media.append(shown)
            keys.append(key)
        prompt = encoder.encode_prompt(turns, self._template.settings.prefill, media)
        ids = tuple(encoder.encode_target(target)) if target is not None else ()
        if self._supervised:
            self._check_target(ids, int(prompt["next_position"]))
        return EncodedSample(sample=sample, prompt=prompt, target_ids=ids, media_key=_joined_key(keys))

    def _check_target(self, ids: Sequence[int], first: int) -> None:
        if not self._banned.isdisjoint(ids):
            raise DataError(
                "its target holds a token that stands for media, which the model can never say; take it out of the "
                "assistant turn"
            )
        limit = self._pipeline.encoder.max_positions
        if first + len(ids) > limit:
            raise DataError(
                f"its prompt and target take {first + len(ids)} positions, and the model has {limit}; shorten them"
            )

    @cached_property
    def _banned(self) -> frozenset[int]:
        return frozenset(self._pipeline.encoder.banned_token_ids())

    @property
    def _use(self) -> dict[str, object]:
        """All that decides, beside the files, whether a sample can be used; with other values it is decided anew.

        By name and one by one: a new setting is added here only if it decides, since that voids what runs decided.
        """
        encoder, media, prompt = self._pipeline.encoder, self._pipeline.settings, self._template.settings
        return {
            "supervised": self._supervised,
            "num_frames": media.num_frames,
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
        }

    def _load(self, ref: MediaRef, variant: Variant) -> tuple[str, dict[str, Tensor]]:
        """What the model is shown of a medium, and a key for it."""
        key, _ = self._pipeline.keyed_task(self._path(ref), ref, self._root)
        encoded = self._pipeline.cache.get(key)
        shown = self._pipeline.altered(encoded, ref.kind, variant)
        return key if shown is encoded else f"{key}/{variant}", shown

    def _faults(
        self, manifest: str, monitor: DataMonitor, samples: Sequence[Sample], tried: Collection[str]
    ) -> dict[str, str]:
        """By id, why samples cannot be used; prompts of samples that were tried before are not tried again."""
        by_path = self._encode_media(manifest, monitor, samples)
        found: dict[str, str] = {}
        pending = sum(sample.id not in tried for sample in samples)
        done = count(1)
        for sample in samples:
            reason = next((by_path[ref] for ref in sample.media if ref in by_path), None)
            if sample.id not in tried:
                reason = reason or self._prompt_fault(sample)
                monitor.progress(f"trying prompts of {manifest}", next(done), pending)
            if reason is not None:
                found[sample.id] = reason
        return found

    def _prompt_fault(self, sample: Sample) -> str | None:
        try:
            self._encoded(sample, "full")
        except StageError:  # the checkpoint's fault, and no sample's
            raise
        except Exception as error:
            if refusal(error) is not None:  # it says nothing of the sample
                raise
            return in_words(error)
        return None

    def _encode_media(self, manifest: str, monitor: DataMonitor, samples: Sequence[Sample]) -> dict[MediaRef, str]:
        """Decodes and encodes each medium that the cache lacks; the reason for each that fails."""
        keys: dict[MediaRef, str] = {}
        failures: dict[MediaRef, str] = {}
        missing: dict[str, DecodeTask] = {}
        for ref in dict.fromkeys(ref for sample in samples for ref in sample.media):
            try:
                keys[ref], task = self._pipeline.keyed_task(self._path(ref), ref, self._root)
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
            monitor.progress(f"preparing {manifest}", next(done), len(tasks))

        self._pipeline.decoder.decode_all(tasks, store)
        if warnings:
            monitor.warn(manifest, list(dict.fromkeys(warnings)))
        return failures | {ref: reasons[key] for ref, key in keys.items() if key in reasons}

    def _set_aside(self, manifest: str, reasons: Mapping[str, str]) -> None:
        if not reasons:
            return
        usable = [sample for sample in self.samples if sample.id not in reasons]
        bad = [sample for sample in self.samples if sample.id in reasons]
        if not usable:
            raise DataError(f"{manifest}: all {len(bad)} samples cannot be used; the first: {reasons[bad[0].id]}")
        self.samples, self.excluded = usable, tuple(bad)
        self.quarantined = tuple(Quarantined(sample_id=sample.id, reason=reasons[sample.id]) for sample in bad)

    def _path(self, ref: MediaRef) -> Path:
        return resolve_media(ref.path, self._root, f"medium {ref.path}")


def _joined_key(keys: Sequence[str]) -> str:
    """One key for the media of a prompt in their order; "" for none."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest() if keys else ""


def check_turns(manifest: str, samples: Sequence[Sample], template: PromptTemplate, *, supervised: bool) -> None:
    """Looks at the turns of samples that will be prompts, or prompts with targets if `supervised`.

    Raises:
        DataError: A sample has no user turn or no target, or its target does not start with the prefill.
    """
    for sample in samples:
        try:
            _turns(sample, template, supervised)
        except DataError as error:
            raise DataError(f"{manifest}: {error}") from error


def _turns(sample: Sample, template: PromptTemplate, supervised: bool) -> tuple[tuple[Message, ...], str | None]:
    """The turns of the prompt, and the target if there is one."""
    try:
        turns, target = template.split_target(sample.messages)
        prompt = template.apply(turns)
    except DataError as error:
        raise DataError(f"sample {sample.id}: {error}") from error
    if supervised and target is None:
        raise DataError(f"sample {sample.id} has no assistant turn to learn from; add one or use it for RL")
    return prompt, target


class JoinedSets(Dataset[EncodedSample]):
    """Prepared sets one after the other; the index of a `Draw` counts through all of them."""

    def __init__(self, sets: Sequence[PreparedSet]) -> None:
        self._sets = tuple(sets)
        self._starts = [0, *accumulate(len(each) for each in sets)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, draw: Draw) -> EncodedSample:
        number = bisect_right(self._starts, draw.index) - 1
        return self._sets[number][replace(draw, index=draw.index - self._starts[number])]
