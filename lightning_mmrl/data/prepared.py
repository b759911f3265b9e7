"""A manifest made ready for a model: every medium decoded and encoded once, bad clips in quarantine."""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.utils.data import Dataset

from lightning_mmrl.data.collate import EncodedSample
from lightning_mmrl.data.media.cache import MediaCache, media_key
from lightning_mmrl.data.media.guard import DecodeTask, GuardedDecoder
from lightning_mmrl.data.sampler import Draw, Variant
from lightning_mmrl.data.schema import read_manifest, resolve_media
from lightning_mmrl.errors import DataError, MediaError
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, DecodedVideo, MediaSettings
from lightning_mmrl.types.records import MediaKind, MediaRef, Message, Sample
from lightning_mmrl.workers.pool import Outcome


class DataMonitor(Protocol):
    """Hears of decoding: how far it is, and which samples were left out."""

    def progress(self, description: str, done: int, total: int) -> None: ...

    def quarantine(self, manifest: str, num_usable: int, left_out: Sequence["Quarantined"]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaPipeline:
    """How media of a dataset become tensors."""

    encoder: PromptEncoder
    settings: MediaSettings
    cache: MediaCache
    decoder: GuardedDecoder

    def key(self, path: Path, ref: MediaRef) -> str:
        """Cache key of a medium."""
        return media_key(path, ref, self.settings, self.encoder.fingerprint)

    def encode(self, decoded: DecodedImage | DecodedVideo | DecodedAudio) -> dict[str, Tensor]:
        """Model inputs of one decoded medium."""
        if isinstance(decoded, DecodedImage):
            return self.encoder.encode_image(decoded)
        if isinstance(decoded, DecodedVideo):
            return self.encoder.encode_video(decoded)
        return self.encoder.encode_audio(decoded)

    def altered(self, encoded: dict[str, Tensor], kind: MediaKind, variant: Variant) -> dict[str, Tensor]:
        """An encoded medium as the variant shows it: sound silent, or pictures and clips grey."""
        if variant == "silent" and kind == "audio":
            return self.encoder.silent_audio(encoded)
        if variant == "blank" and kind == "video":
            return self.encoder.blank_video(encoded)
        if variant == "blank" and kind == "image":
            return self.encoder.blank_image(encoded)
        return encoded


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
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        media_root: Path,
        pipeline: MediaPipeline,
        template: PromptTemplate,
        supervised: bool,
    ) -> None:
        self.samples = list(samples)
        self.quarantined: tuple[Quarantined, ...] = ()
        self._root = media_root
        self._pipeline = pipeline
        self._template = template
        self._supervised = supervised

    @classmethod
    def from_manifest(cls, manifest: Path, **how: object) -> "PreparedSet":
        """Reads a manifest; `how` are the constructor's other arguments."""
        root = how["media_root"]
        return cls(read_manifest(manifest, root), **how)  # type: ignore[arg-type]

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
                if ref.kind not in encoder.media_kinds:
                    reads = ", ".join(sorted(encoder.media_kinds)) or "text alone"
                    raise DataError(
                        f"{manifest}: sample {sample.id} has <{ref.kind}> media, and "
                        f"{encoder.family} reads {reads}; choose a model family that reads {ref.kind} or "
                        "remove the sample"
                    )

    def prepare(self, manifest: str, monitor: DataMonitor) -> None:
        """Decodes and encodes what the cache lacks, and moves samples with a bad medium to `quarantined`.

        Raises:
            DataError: A sample cannot be used, or no sample is left.
        """
        self.check(manifest)
        missing = self._missing_media()
        failures: dict[str, str] = {}
        keys, done = list(missing), count(1)

        def store(index: int, outcome: Outcome) -> None:
            key = keys[index]
            reason = outcome.error
            if reason is None:
                try:
                    self._pipeline.cache.put(key, self._pipeline.encode(outcome.value))
                except (MediaError, ValueError) as error:
                    reason = str(error)
            if reason is not None:
                path = str(missing[key].path)
                failures[key] = reason if path in reason else f"{path}: {reason}"
            monitor.progress(f"preparing {manifest}", next(done), len(keys))

        self._pipeline.decoder.decode_all(list(missing.values()), store)
        self._set_aside(failures)
        if self.quarantined:
            monitor.quarantine(manifest, len(self.samples), self.quarantined)

    def __getitem__(self, draw: Draw) -> EncodedSample:
        sample = self.samples[draw.index]
        turns, target = _turns(sample, self._template, self._supervised)
        media, keys = [], []
        for ref in sample.media:
            key, shown = self._load(ref, draw.variant)
            media.append(shown)
            keys.append(key)
        prompt = self._pipeline.encoder.encode_prompt(turns, self._template.prefill, media)
        ids = tuple(self._pipeline.encoder.encode_target(target)) if target is not None else ()
        return EncodedSample(sample=sample, prompt=prompt, target_ids=ids, media_key=_joined_key(keys))

    def _load(self, ref: MediaRef, variant: Variant) -> tuple[str, dict[str, Tensor]]:
        """What the model is shown of a medium, and a key for it."""
        key = self._pipeline.key(self._path(ref), ref)
        encoded = self._pipeline.cache.get(key)
        shown = self._pipeline.altered(encoded, ref.kind, variant)
        return key if shown is encoded else f"{key}/{variant}", shown

    def _missing_media(self) -> dict[str, DecodeTask]:
        tasks = {}
        for sample in self.samples:
            for ref in sample.media:
                path = self._path(ref)
                key = self._pipeline.key(path, ref)
                if key not in tasks and key not in self._pipeline.cache:
                    tasks[key] = DecodeTask(path=path, ref=ref, settings=self._pipeline.settings)
        return tasks

    def _set_aside(self, failures: Mapping[str, str]) -> None:
        if not failures:
            return
        usable, bad = [], []
        for sample in self.samples:
            keys = [self._pipeline.key(self._path(ref), ref) for ref in sample.media]
            reason = next((failures[key] for key in keys if key in failures), None)
            if reason is None:
                usable.append(sample)
            else:
                bad.append(Quarantined(sample_id=sample.id, reason=reason))
        if not usable:
            raise DataError(f"all {len(bad)} samples failed to decode; the first: {bad[0].reason}")
        self.samples, self.quarantined = usable, (*self.quarantined, *bad)

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
