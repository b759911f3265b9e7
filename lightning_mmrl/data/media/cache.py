"""Caches encoded media in a folder, so that each file is decoded once, however many passes and stages use it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lightning_mmrl.data.media.opened import Identity, MediaFile
from lightning_mmrl.errors import DataError, DiskError
from lightning_mmrl.files import dispensable, write_whole
from lightning_mmrl.machine import refusal
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import decisive
from lightning_mmrl.types.records import MediaRef

MOST_HELD_BYTES = 2**30
"""Maximum size of the encoded media that are kept in memory because the disk of the cache refuses them."""

_DECODING = 2
"""Version of the decoding code; raise it when the same file, span and settings decode to other frames or samples."""


_MAX_HASHES = 65_536
_hashes: dict[Identity, str] = {}
"""Content hashes of the files that this process has read already."""


def media_key(file: MediaFile, ref: MediaRef, settings: MediaSettings, encoder_fingerprint: str) -> str:
    """Cache key of one encoded medium: file content, span, decode settings, version of decoding, and encoder."""
    if file.identity not in _hashes:
        if len(_hashes) >= _MAX_HASHES:
            _hashes.clear()
        _hashes[file.identity] = file.sha256()
    content, how = _hashes[file.identity], sorted(decisive(settings).items())
    text = f"{content}/{ref.kind}/{ref.start_s}/{ref.end_s}/{how}/{_DECODING}/{encoder_fingerprint}"
    return hashlib.sha256(text.encode()).hexdigest()


class MediaCache:
    """Encoded media by key, one safetensors file each; writes are atomic, so several processes may share a folder.

    Entries that the disk refuses stay in memory, up to `MOST_HELD_BYTES`, and the next run encodes them again.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held: dict[str, dict[str, Tensor]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._held or self._path(key).is_file()

    def get(self, key: str) -> dict[str, Tensor]:
        """The encoded medium.

        Raises:
            DataError: The entry is missing or damaged.
        """
        if key in self._held:
            return dict(self._held[key])
        path = self._path(key)
        try:
            with path.open("rb"):  # safetensors would report an unreadable file as missing
                return load_file(path)
        except PermissionError as error:
            found = refusal(error)
            assert found is not None
            raise DataError(f"{found.problem}; {found.remedy} with data.media.cache_dir") from error
        except (OSError, SafetensorError) as error:
            raise DataError(f"cache entry {path} cannot be read ({error}); delete it and run again") from error

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Stores an encoded medium.

        Raises:
            DiskError: The disk refuses the entry, and no more entries may be held in memory.
        """
        try:
            write_whole(self._path(key), save(dict(tensors)), shared=True, durable=False)
        except DiskError as error:
            self._held[key] = {name: tensor.clone() for name, tensor in tensors.items()}
            held = sum(tensor.nbytes for entry in self._held.values() for tensor in entry.values())
            if held > MOST_HELD_BYTES:
                remedy = f"{error.remedy}, or set data.media.cache_dir to a folder on another disk"
                raise DiskError(error.problem, remedy) from error
            with dispensable("entries of the media cache", self._directory):
                raise

    def _path(self, key: str) -> Path:
        return self._directory / key[:2] / f"{key}.safetensors"
