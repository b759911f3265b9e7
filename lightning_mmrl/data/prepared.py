"""The samples of a manifest as a model reads them: decodes and encodes media once, and finds unusable samples."""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from torch import Tensor

from lightning_mmrl.data.collate import EncodedSample
from lightning_mmrl.data.exchanges import exchanges, turns_check
from lightning_mmrl.data.exclusions import DecidedSet, Exclusions
from lightning_mmrl.data.media.asked import unread
from lightning_mmrl.data.media.guard import DecodeTask
from lightning_mmrl.data.media_files import resolve_media
from lightning_mmrl.data.pipeline import DecodeAll, MediaPipeline, in_words
from lightning_mmrl.data.sampler import Draw, Variant
from lightning_mmrl.data.samples import KIND_BITS, first_medium, samples_of
from lightning_mmrl.data.shuffling import swapped
from lightning_mmrl.data.targets import encoded_exchanges, encoded_pair
from lightning_mmrl.errors import DataError, MachineError, MediaError, StageError
from lightning_mmrl.machine import refusal
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.settings.lessons import Lesson
from lightning_mmrl.types.media import SAMPLE_RATE_HZ
from lightning_mmrl.types.records import MediaKind, MediaRef, Sample
from lightning_mmrl.workers.pool import CallResult, WorkerError


class DataMonitor(Protocol):
    """Receives the progress of decoding, the samples that were left out, and the warnings of decoders."""

    def progress(self, description: str, done: int, total: int) -> None: ...

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

TOGETHER = 16
"""Samples that `PreparedSet.faults` holds at once."""


class PreparedSet:
    """The samples of a manifest, each read when it is drawn, with what is decided about them.

    Args:
        samples: Samples in manifest order.
        media_root: Folder of the media paths.
        pipeline: Converts media to tensors.
        template: Prompt template.
        supervised: True if each sample must have a target.
        lesson: Which targets a supervised stage learns from a sample.
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
        lesson: Lesson = "turns",
        exclusions: Exclusions | None = None,
    ) -> None:
        self.samples = samples_of(samples)
        self._exclusions = exclusions or Exclusions()
        self._root = media_root
        self._pipeline = pipeline
        self._template = template
        self._supervised = supervised
        self._lesson: Lesson = lesson

    def __len__(self) -> int:
        return len(self.samples)

    def check(self, manifest: str) -> None:
        """Checks every sample without decoding media.

        Raises:
            DataError: The turns of a sample are unusable, or it has a medium that the model does not read.
        """
        encoder = self._pipeline.encoder
        turns_check(self._template, supervised=self._supervised, lesson=self._lesson)(manifest, self.samples)
        reads: dict[MediaKind, str] = {kind: reason for kind in KIND_BITS if (reason := unread(kind, encoder))}
        if (found := first_medium(self.samples, reads)) is not None:
            sample, kind = found
            raise DataError(
                f"{manifest}: sample {sample.id} has <{kind}> media, and {reads[kind]}; choose a model family "
                f"that reads {kind} or remove the sample"
            )

    def void(self, manifest: str) -> str | None:
        """Why earlier decisions do not apply to this set any more, if there are such decisions.

        Raises:
            DataError: The file of the decisions is damaged.
        """
        return self._exclusions.void(self._which(manifest), self.samples)

    def decided(self, manifest: str, samples: Sequence[Sample]) -> dict[str, str | None]:
        """Maps ids of samples that were decided on to the reason for leaving the sample out, or None if it is used.

        Raises:
            DataError: The file of the decisions is damaged.
        """
        return self._exclusions.decided(self._which(manifest), samples)

    def decide(self, manifest: str, samples: Sequence[Sample], reasons: Mapping[str, str]) -> None:
        """Saves decisions about samples: those with a reason are left out, the others are used."""
        self._exclusions.decide(self._which(manifest), samples, reasons)

    def flush(self) -> None:
        """Waits until a loss of power cannot take away what was decided."""
        self._exclusions.flush()

    def read(self, draws: Sequence[Draw], decode: DecodeAll) -> tuple[list[EncodedSample | Fault], list[str]]:
        """Decodes and encodes what is not in the cache, and returns each sample, with the warnings of decoders.

        Raises:
            StageError: The checkpoint is at fault.
            MachineError: The machine is.
        """
        fresh: dict[str, dict[str, Tensor]] = {}
        samples = [self._shown(draw) for draw in draws]
        by_ref, warnings = self._encode_media(samples, decode, fresh)
        found: list[EncodedSample | Fault] = []
        for draw, sample in zip(draws, samples, strict=True):
            reason = next((by_ref[ref] for ref in sample.media if ref in by_ref), None)
            encoded = self._tried(sample, draw.variant, fresh, decode) if reason is None else reason
            found.append(Fault(reason=encoded) if isinstance(encoded, str) else encoded)
        return found, warnings

    def _shown(self, draw: Draw) -> Sample:
        """The sample of a draw, with the sound or the picture of its partner if it has one."""
        sample = self.samples[draw.index]
        return sample if draw.partner is None else swapped(sample, self.samples[draw.partner], draw.variant)

    def faults(self, manifest: str, monitor: DataMonitor) -> dict[str, str]:
        """Maps sample ids to the reason why a stage would leave the sample out if it decided now."""
        found: dict[str, str] = {}
        warnings: list[str] = []
        with self._pipeline.decoder.session() as session:
            for start in range(0, len(self), TOGETHER):
                end = min(start + TOGETHER, len(self))
                draws = [Draw(index=index, serial=index) for index in range(start, end)]
                read, odd = self.read(draws, session.decode_all)
                warnings += odd
                for sample, each in zip(self.samples[start:end], read, strict=True):
                    if isinstance(each, Fault):
                        found[sample.id] = each.reason
                monitor.progress(f"preparing {manifest}", end, len(self))
        if warnings:
            monitor.warn(manifest, list(dict.fromkeys(warnings)))
        return found

    def _encoded(
        self, sample: Sample, variant: Variant, fresh: Mapping[str, dict[str, Tensor]], decode: DecodeAll
    ) -> EncodedSample:
        """Encodes a sample; `fresh` holds encoded media by key, which need not be in the cache."""
        encoder = self._pipeline.encoder
        found = exchanges(sample, self._template, supervised=self._supervised, lesson=self._lesson)
        media, keys = [], []
        for ref in sample.media:
            path = resolve_media(ref.path, self._root, f"medium {ref.path}")
            key, task = self._pipeline.keyed_task(path, ref, self._root)
            encoded = dict(fresh[key]) if key in fresh else self._pipeline.fetched(key, task, decode)
            shown = self._pipeline.altered(encoded, ref.kind, variant)
            media.append(shown)
            keys.append(key if shown is encoded else f"{key}/{variant}")
        with _tokenizing:
            encode = encoded_pair if self._lesson == "pair" else encoded_exchanges
            answered = encode(encoder, self._template.settings, found, media)
        parts = []
        for each in answered:
            if refused := unlearnable(each.ids, int(each.prompt["next_position"]), self._banned, encoder.max_positions):
                raise DataError(refused)
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
            **{key: text for key, text in (("raw", prompt.raw), ("prefix", prompt.prefix)) if text},
            **({"mask_history": True} if self._lesson == "last_turn" else {}),
            **({"pairs": True} if self._lesson == "pair" else {}),
        }

    def _which(self, manifest: str) -> DecidedSet:
        return DecidedSet(manifest=manifest, root=self._root, use=self._use)

    def _tried(
        self, sample: Sample, variant: Variant, fresh: Mapping[str, dict[str, Tensor]], decode: DecodeAll
    ) -> EncodedSample | str:
        """The encoded sample, or why it cannot be encoded."""
        try:
            return self._encoded(sample, variant, fresh, decode)
        except (StageError, MachineError, WorkerError):  # the checkpoint or the machine is at fault, not the sample
            raise
        except Exception as error:
            if refusal(error) is not None:
                raise
            return in_words(error)

    def _encode_media(
        self, samples: Sequence[Sample], decode: DecodeAll, fresh: dict[str, dict[str, Tensor]]
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

        def store(index: int, outcome: CallResult) -> None:
            key = order[index]
            try:
                encoded = self._pipeline.encode_file(tasks[index].path, outcome)
            except MediaError as error:
                reasons[key] = str(error)
            else:
                warnings.extend(outcome.value.warnings)
                self._pipeline.cache.put(key, encoded)
                fresh[key] = encoded

        decode(tasks, store)
        failures.update({ref: reasons[key] for ref, key in keys.items() if key in reasons})
        return failures, list(dict.fromkeys(warnings))


def unlearnable(ids: Sequence[int], num_positions: int, banned: frozenset[int], most: int) -> str | None:
    """Why the tokens of a target cannot be learned after a prompt of so many positions; None if they can.

    The model has `most` positions, and can never say `banned` tokens.
    """
    if not banned.isdisjoint(ids):
        return (
            "its target holds a token that stands for media, which the model can never say; take it out of the "
            "assistant turn"
        )
    num = num_positions + len(ids)
    if ids and num > most:
        return f"its prompt and target take {num} positions, and the model has {most}; shorten them"
    return None


class TargetTokens:
    """Gives the targets of samples whose prompts were drawn without them: the assistant turn at the end, as for SFT.

    Args:
        encoder: Of the model.
        template: Prompt template of the stage.
    """

    def __init__(self, encoder: PromptEncoder, template: PromptTemplate) -> None:
        self._encoder = encoder
        self._template = template

    def __call__(self, sample: Sample, num_positions: int) -> list[int] | str:
        """The tokens after a prompt of so many positions, or why there are none that could be learned."""
        target = self._template.split_target(sample.messages)[1]
        if target is None:
            return f"sample {sample.id} does not end with an assistant turn"
        with _tokenizing:
            ids = self._encoder.encode_target(target)
        refused = unlearnable(ids, num_positions, self._banned, self._encoder.max_positions)
        return ids if refused is None else f"sample {sample.id}: {refused}"

    @cached_property
    def _banned(self) -> frozenset[int]:
        return frozenset(self._encoder.banned_token_ids())


def unusable_now(manifest: str, sample_id: str, reason: str) -> DataError:
    """The error for a sample that the run used before."""
    return DataError(
        f"{manifest}: sample {sample_id} was used before in this run and cannot be now: {reason}; restore the file, "
        "without which the run cannot continue as it began, or set a new run_name"
    )
