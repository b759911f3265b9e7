"""Converts media to model inputs; if the conversion fails, the error names the file."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lightning_mmrl.data.media.cache import MediaCache, media_key
from lightning_mmrl.data.media.guard import DecodeTask, GuardedDecoder
from lightning_mmrl.data.media.opened import open_media
from lightning_mmrl.data.media.sizes import check_sizes
from lightning_mmrl.data.sampler import Variant
from lightning_mmrl.errors import MediaError, MmrlError, StageError
from lightning_mmrl.machine import refusal
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, DecodedVideo
from lightning_mmrl.types.records import MediaKind, MediaRef
from lightning_mmrl.workers.pool import CallResult

DecodeAll = Callable[[Sequence[DecodeTask], Callable[[int, CallResult], None]], None]
"""Decodes tasks, and passes each outcome on with the place of its task."""

_LOADING_S = 600.0
"""Seconds that encoding waits for a model that another thread loads."""
_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaPipeline:
    """Decodes, encodes and caches the media of a dataset."""

    encoder: PromptEncoder
    settings: MediaSettings
    cache: MediaCache
    decoder: GuardedDecoder

    def __post_init__(self) -> None:
        """Refuses sizes that the model cannot show.

        Raises:
            ConfigError: Naming the key.
        """
        check_sizes(self.settings, self.encoder.own_sizes)

    def task(self, path: Path, ref: MediaRef) -> DecodeTask:
        """A task that decodes a medium of a file that the user named."""
        return DecodeTask(path=path, ref=ref, settings=self.settings, own=self.encoder.own_sizes)

    def keyed_task(self, path: Path, ref: MediaRef, root: Path) -> tuple[str, DecodeTask]:
        """Returns the cache key of a medium below `root`, and a task that decodes exactly the file of that key.

        Raises:
            MediaError: The file cannot be read or lies outside `root`.
        """
        try:
            with open_media(path, root) as file:
                key = media_key(file, ref, self.settings, self.encoder.fingerprint, self.cache.hashes)
                return key, replace(self.task(path, ref), root=root, seen=file.identity)
        except OSError as error:
            raise MediaError(f"{path}: cannot be read ({error.strerror})") from error

    def encode(self, decoded: DecodedImage | DecodedVideo | DecodedAudio) -> dict[str, Tensor]:
        """Encodes a decoded medium as model inputs.

        Raises:
            MediaError: The encoder refuses the medium, or returns values that are not finite.
        """
        encoded = self._encoded(decoded)
        for name, tensor in encoded.items():
            bad = 0 if not tensor.is_floating_point() else int((~torch.isfinite(tensor)).sum())
            if bad:
                raise MediaError(
                    f"{bad} of {tensor.numel()} encoded values ({name}) are not finite; re-encode the file"
                )
        return encoded

    def _encoded(self, decoded: DecodedImage | DecodedVideo | DecodedAudio) -> dict[str, Tensor]:
        """Encodes while torch's default type is float32.

        The type is one for all threads. While another thread loads a model, which vLLM and transformers do under the
        model's type, processors would compute in that type.
        """
        until = time.monotonic() + _LOADING_S
        while time.monotonic() < until:
            if torch.get_default_dtype() == torch.float32:
                encoded = self._encoded_now(decoded)
                if torch.get_default_dtype() == torch.float32:
                    return encoded
            time.sleep(_PAUSE_S)
        raise StageError(
            f"torch's default type has been {torch.get_default_dtype()} for {_LOADING_S:.0f} s, and media are encoded "
            "in float32; call torch.set_default_dtype(torch.float32)"
        )

    def _encoded_now(self, decoded: DecodedImage | DecodedVideo | DecodedAudio) -> dict[str, Tensor]:
        if isinstance(decoded, DecodedImage):
            return self.encoder.encode_image(decoded)
        if isinstance(decoded, DecodedVideo):
            return self.encoder.encode_video(decoded)
        return self.encoder.encode_audio(decoded)

    def encode_file(self, path: Path, outcome: CallResult) -> dict[str, Tensor]:
        """Encodes the outcome of decoding a file.

        Raises:
            MediaError: The file could not be decoded or encoded; the message names it.
        """
        try:
            if outcome.error is not None:
                raise MediaError(outcome.error.removeprefix(f"{path}: "))
            return self.encode(outcome.value)
        except StageError:  # this process is at fault, not the file
            raise
        except Exception as error:  # an encoder may raise anything for an unusual file
            if refusal(error) is not None:
                raise
            raise MediaError(f"{path}: {in_words(error)}") from error

    def fetched(self, key: str, task: DecodeTask, decode: DecodeAll) -> dict[str, Tensor]:
        """The encoded medium of a key: from the cache, or else decoded, encoded and put there.

        Raises:
            MediaError: The file could not be decoded or encoded; the message names it.
            DataError: The entry of the cache is damaged.
            DiskError: The disk refuses the entry, and no more entries may be held in memory.
        """
        found = self.cache.get(key)
        if found is None:
            outcomes: dict[int, CallResult] = {}
            decode([task], outcomes.__setitem__)
            found = self.encode_file(task.path, outcomes[0])
            self.cache.put(key, found)
        return found

    def altered(self, encoded: dict[str, Tensor], kind: MediaKind, variant: Variant) -> dict[str, Tensor]:
        """Applies a variant to an encoded medium: silences sound, or turns pictures and clips grey."""
        if kind == "audio":
            return self.encoder.silent_audio(encoded) if variant in ("silent", "text_only") else encoded
        if variant not in ("blank", "text_only"):
            return encoded
        return self.encoder.blank_video(encoded) if kind == "video" else self.encoder.blank_image(encoded)


def in_words(error: Exception) -> str:
    """Returns the message of an error, with the error's type in front unless it is an `MmrlError`."""
    return str(error) if isinstance(error, MmrlError) else f"{type(error).__name__}: {error}"
