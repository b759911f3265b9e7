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
"""What one process may write, as a share of `max_bytes`, before it looks again at what others have written."""
SHARE_USED = 7 / 8
"""What eviction leaves in place: eight processes at their unseen share still fit beside it."""
ABANDONED_S = 3600.0
"""Age in seconds of a temporary file whose writer must be dead."""

_log = logging.getLogger(__name__)


class FeatureCache:
    """Feature rows by the content of a prompt's media, one safetensors file for each prompt.

    An entry is found by the prompt's media key (file contents, spans, decode settings and processor), the towers and
    the precision they compute in. Any number of processes may share a folder: an entry appears as a whole or not at
    all, and one that another process evicts is a miss. Each holds a hash of its tensors; a damaged one is dropped with
    a warning. A folder that cannot be written, or a full disk, is warned of once; nothing is written from then on, and
    what is missing is counted.

    At most `max_bytes` are used, also by eight processes at once if no entry is larger than a 64th of that. What was
    read least recently leaves first; reading renews the modification time of a file.

    **Deviation**: rows that were computed in another batch may differ from freshly computed ones by rounding.

    Args:
        settings: Where entries lie, in a folder that the first one creates, and the bound on all files there.
        towers: What decides the output of the towers; see `tower_fingerprint`.
    """

    def __init__(self, settings: FeatureCacheSettings, *, towers: str) -> None:
        self._directory = Path(settings.directory)
        self._max_bytes = settings.max_bytes
        self._towers = towers
        self._allowance = 0.0
        self._warned: set[str] = set()
        self._refused: str | None = None

    def get(self, media_key: str, precision: str, rows: Mapping[str, int]) -> dict[str, Tensor] | None:
        """The features of a prompt that needs this many rows of each kind; None if they are not there or not whole."""
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
            features = None  # whole, but of no use
        if features is None:
            _log.warning("Cached features %s are damaged; they are dropped and computed anew.", path)
        # In a folder that may only be read, damaged entries stay misses, and nothing has to leave.
        with suppress(OSError):
            path.unlink() if features is None else os.utime(path)
        return features

    def put(self, media_key: str, precision: str, features: Mapping[str, Tensor]) -> None:
        """Stores the features of a prompt, if there is room and they are finite; others are computed again."""
        with dispensable("entries of the feature cache", self._directory):
            if self._refused is not None:
                raise DiskError(self._refused)
            if bool(all_finite(features.values())):
                self._store(self._path(media_key, precision), features)

    def _store(self, path: Path, features: Mapping[str, Tensor]) -> None:
        tensors = {kind: rows.detach().cpu().contiguous() for kind, rows in features.items()}
        content = save({**tensors, DIGEST: torch.tensor(list(digest(tensors)), dtype=torch.uint8)})
        try:
            if self._make_room(len(content)):
                write_whole(path, content, shared=True, durable=False)
        except OSError as error:
            self._refused = str(error)
            raise DiskError(self._refused) from error

    def _path(self, media_key: str, precision: str) -> Path:
        name = hashlib.sha256(f"{media_key}/{self._towers}/{precision}".encode()).hexdigest()
        return self._directory / name[:2] / f"{name}.safetensors"

    def _make_room(self, num_bytes: int) -> bool:
        """Evicts what is in the way of an entry; False if it can never fit."""
        limit = SHARE_USED * self._max_bytes
        if num_bytes > limit:
            self._warn_once(f"has no room for an entry of {num_bytes} bytes; raise max_bytes")
            return False
        if num_bytes > self._allowance:
            _evict(self._directory, limit - num_bytes)
            self._allowance = max(SHARE_UNSEEN * self._max_bytes, num_bytes)
        self._allowance -= num_bytes
        return True

    def _warn_once(self, reason: str, more: str = "") -> None:
        """Says a reason once, whichever entry it is about; `more` is told of the first."""
        if reason not in self._warned:
            self._warned.add(reason)
            _log.warning("The feature cache %s %s%s.", self._directory, reason, more)


def digest(tensors: Mapping[str, Tensor]) -> bytes:
    """Hash of names, precisions, shapes and values, one tensor after the other."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.digest()


def _opened(content: bytes, rows: Mapping[str, int]) -> dict[str, Tensor] | None:
    """The tensors of an entry, if they are those that were put and as many as are needed."""
    try:
        features = load(content)
    except SafetensorError:
        return None
    stored = features.pop(DIGEST, None)
    if stored is None or bytes(stored.tolist()) != digest(features):
        return None
    return features if {kind: len(tensor) for kind, tensor in features.items()} == rows else None


def _evict(directory: Path, limit: float) -> None:
    """Removes what was read least recently until `limit` bytes are left; others may remove files at the same time."""
    files = []
    for path in directory.glob("*/*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            files.append((status.st_mtime_ns, status.st_size, path))
    total, now = sum(size for _, size, _ in files), time.time()
    for modified_ns, size, path in sorted(files):
        is_temporary = path.suffix == ".tmp"
        abandoned = is_temporary and now - modified_ns / 1e9 > ABANDONED_S
        if abandoned or (total > limit and not is_temporary):
            path.unlink(missing_ok=True)
            total -= size
