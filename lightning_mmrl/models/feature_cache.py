"""Outputs of frozen towers on disk: a prompt whose media were encoded before enters no tower again."""

import hashlib
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lightning_mmrl.errors import DiskError
from lightning_mmrl.files import dispensable, write_whole
from lightning_mmrl.machine import refusal
from lightning_mmrl.models.finite import all_finite
from lightning_mmrl.settings.model import FeatureCacheSettings

DIGEST = "sha256"
"""Name under which an entry holds the hash of its tensors."""

SHARE_UNSEEN = 1 / 64
"""Share of `max_bytes` that one process may write before it counts the bytes of the folder again."""
SHARE_USED = 7 / 8
"""Share of `max_bytes` that eviction leaves in place: the unseen shares of eight processes still fit."""
ABANDONED_S = 3600.0
"""A temporary file older than this, in seconds, has a dead writer."""

_log = logging.getLogger(__name__)


class FeatureCache:
    """Keeps feature rows by the content of a prompt's media, in one safetensors file for each prompt.

    The key of an entry has the prompt's media key (file contents, spans, decode settings and processor), the towers and
    the precision they compute in. Any number of processes may share a folder: an entry appears as a whole or not at
    all, and an entry that another process evicts is a miss. Each entry holds a hash of its tensors; a damaged one is
    dropped with a warning. If the folder cannot be written or the disk is full, one warning says so; nothing is written
    from then on, and the missing entries are counted.

    At most `max_bytes` are used, also by eight processes at once if no entry is larger than a 64th of that. The least
    recently read entries leave first; reading renews the modification time of a file.

    **Deviation**: rows that were computed in another batch may differ from freshly computed ones by rounding.

    Args:
        settings: The folder of the entries, which the first entry creates, and the bound on the size of all its files.
        towers: Hash of everything that decides the output of the towers; see `tower_fingerprint`.
    """

    def __init__(self, settings: FeatureCacheSettings, *, towers: str) -> None:
        self._directory = Path(settings.directory)
        self._max_bytes = settings.max_bytes
        self._towers = towers
        self._allowance = 0.0
        self._warned: set[str] = set()
        self._refused: str | None = None

    def get(self, media_key: str, precision: str, rows: Mapping[str, int]) -> dict[str, Tensor] | None:
        """The features of a prompt that needs this many rows of each kind; None if they are missing or damaged."""
        path = self._path(media_key, precision)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            found = refusal(error)
            why = error.strerror if found is None else found.problem
            self._warn_once("cannot be read", f" ({why}); features are computed anew")
            return None
        features = _opened(content, rows)
        if features is not None and not bool(all_finite(features.values())):
            features = None  # undamaged, but useless
        if features is None:
            _log.warning("Cached features %s are damaged; they are dropped and computed anew.", path)
        # In a read-only folder damaged entries stay misses, and nothing is ever evicted.
        with suppress(OSError):
            path.unlink() if features is None else os.utime(path)
        return features

    def put(self, media_key: str, precision: str, features: Mapping[str, Tensor]) -> None:
        """Stores the features of a prompt if there is room and they are finite; otherwise they are computed again."""
        with dispensable("entries of the feature cache", self._directory):
            if self._refused is not None:
                raise DiskError(self._refused)
            if not bool(all_finite(features.values())):
                return
            tensors = {kind: rows.detach().cpu().contiguous() for kind, rows in features.items()}
            content = save({**tensors, DIGEST: torch.tensor(list(digest(tensors)), dtype=torch.uint8)})
            try:
                if self._make_room(len(content)):
                    write_whole(self._path(media_key, precision), content, shared=True, durable=False)
            except OSError as error:
                self._refused = str(error)
                raise DiskError(self._refused) from error

    def _path(self, media_key: str, precision: str) -> Path:
        name = hashlib.sha256(f"{media_key}/{self._towers}/{precision}".encode()).hexdigest()
        return self._directory / name[:2] / f"{name}.safetensors"

    def _make_room(self, num_bytes: int) -> bool:
        """Evicts entries until another one fits; False if it can never fit."""
        limit = SHARE_USED * self._max_bytes
        if num_bytes > limit:
            self._warn_once(f"has no room for an entry of {num_bytes} bytes; raise max_bytes")
            return False
        if num_bytes > self._allowance:
            files = []
            for path in self._directory.glob("*/*"):
                with suppress(FileNotFoundError):  # others may remove files at the same time
                    status = path.stat()
                    files.append((status.st_mtime_ns, status.st_size, path))
            total, now = sum(size for _, size, _ in files), time.time()
            for modified_ns, size, path in sorted(files):  # the least recently read ones first
                is_temporary = path.suffix == ".tmp"
                abandoned = is_temporary and now - modified_ns / 1e9 > ABANDONED_S
                if abandoned or (total > limit - num_bytes and not is_temporary):
                    path.unlink(missing_ok=True)
                    total -= size
            self._allowance = max(SHARE_UNSEEN * self._max_bytes, num_bytes)
        self._allowance -= num_bytes
        return True

    def _warn_once(self, reason: str, more: str = "") -> None:
        """Warns once for each reason, whichever entry it is about; `more` is added to the first warning."""
        if reason not in self._warned:
            self._warned.add(reason)
            _log.warning("The feature cache %s %s%s.", self._directory, reason, more)


def digest(tensors: Mapping[str, Tensor]) -> bytes:
    """Hash of the names, dtypes, shapes and values of tensors."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.digest()


def _opened(content: bytes, rows: Mapping[str, int]) -> dict[str, Tensor] | None:
    """The tensors of an entry; None if they were damaged since `put`, or do not have the number of rows needed."""
    try:
        features = load(content)
    except SafetensorError:
        return None
    stored = features.pop(DIGEST, None)
    if stored is None or bytes(stored.tolist()) != digest(features):
        return None
    return features if {kind: len(tensor) for kind, tensor in features.items()} == rows else None
