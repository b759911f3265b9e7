"""Caches encoded media in a folder, so that each file is decoded once, however many passes and stages use it."""

import hashlib
import logging
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from lightning_mmrl.data.media.cache_folder import HASHES, entry_path, removable, remove, stored_files
from lightning_mmrl.data.media.entries import packed, unpacked
from lightning_mmrl.data.media.hashes import HashIndex
from lightning_mmrl.data.media.opened import MediaFile
from lightning_mmrl.errors import DataError, DiskError
from lightning_mmrl.files import dispensable, write_whole
from lightning_mmrl.machine import refusal
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import decisive
from lightning_mmrl.types.records import MediaRef

MOST_HELD_BYTES = 2**30
"""Maximum size of the encoded media that are kept in memory because the disk of the cache refuses them."""
SHARE_UNSEEN = 1 / 128
"""Share of the limit that one process may write before it counts the bytes of the folder again."""
SHARE_USED = 7 / 8
"""Share of the limit that eviction leaves in place: the unseen shares of sixteen processes still fit."""
RENEWED_S = 60.0
"""A read renews the time of an entry's last use if that is older, in seconds."""
RECENT_S = 120.0
"""An entry used within so many seconds is not evicted, so that what is being worked on stays."""
PATIENCE_S = 10.0
"""Seconds without another count of the folder after one in which nothing could be evicted."""

_DECODING = 2
"""Version of the decoding code; raise it when the same file, span and settings decode to other frames or samples."""

_log = logging.getLogger(__name__)


def media_key(
    file: MediaFile, ref: MediaRef, settings: MediaSettings, encoder_fingerprint: str, hashes: HashIndex
) -> str:
    """Cache key of one encoded medium: file content, span, decode settings, version of decoding, and encoder."""
    how = sorted(decisive(settings).items())
    text = f"{hashes.sha256(file)}/{ref.kind}/{ref.start_s}/{ref.end_s}/{how}/{_DECODING}/{encoder_fingerprint}"
    return hashlib.sha256(text.encode()).hexdigest()


class MediaCache:
    """Encoded media by key, one file each; writes are atomic, so several processes may share a folder.

    With a limit, new entries displace the least recently used ones, but none that was used in the last `RECENT_S`. So
    an entry may be gone at any time, also right after `put`; a caller that gets None decodes again.

    Entries that the disk refuses stay in memory, up to `MOST_HELD_BYTES`, and the next run encodes them again. A copy
    in another process starts without them.

    Attributes:
        directory: The folder, which the first entry creates.
        hashes: The index of content hashes in that folder.

    Args:
        directory: See the attribute.
        limit_gb: Gigabytes (10^9 bytes) of all entries together; None for no limit.
    """

    def __init__(self, directory: Path, limit_gb: float | None = None) -> None:
        self.directory = directory
        self.hashes = HashIndex(directory / HASHES)
        self._limit_gb = limit_gb
        self._held: dict[str, dict[str, Tensor]] = {}
        self._put: set[int] = set()
        self._put_bytes = 0
        self._allowance = 0.0
        self._full_until_s = 0.0
        self._warned: set[str] = set()

    def __reduce__(self) -> tuple[type["MediaCache"], tuple[Path, float | None]]:
        return MediaCache, (self.directory, self._limit_gb)

    def __contains__(self, key: str) -> bool:
        return key in self._held or entry_path(self.directory, key).is_file()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The encoded medium; None if it is not there, was evicted, or was damaged and is deleted now.

        Raises:
            DataError: The entry belongs to another user and cannot be read.
            DiskError: The disk refuses.
        """
        if key in self._held:
            return dict(self._held[key])
        path = entry_path(self.directory, key)
        try:
            with path.open("rb") as file:
                used_s = os.fstat(file.fileno()).st_mtime
                found = unpacked(file.read())
        except FileNotFoundError:
            return None
        except PermissionError as error:
            refused = refusal(error)
            assert refused is not None
            raise DataError(f"{refused.problem}; {refused.remedy} with data.media.cache_dir") from error
        except OSError as error:
            raise DiskError(f"cache entry {path} cannot be read ({error.strerror})", "look at that disk") from error
        except (ValueError, SafetensorError) as error:
            self._warn_once(f"had a damaged entry ({error}), as after a crash; such media are decoded again", "")
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        if time.time() - used_s > RENEWED_S:
            with suppress(OSError):  # in a read-only folder nothing is ever evicted
                os.utime(path)
        return found

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Stores an encoded medium, unless the limit leaves no room for it.

        Raises:
            DiskError: The disk refuses the entry, and no more entries may be held in memory.
        """
        content = packed(tensors)
        self._note(key, len(content))
        try:
            if self._make_room(len(content)):
                write_whole(entry_path(self.directory, key), content, shared=True, durable=False)
        except DiskError as error:
            self._held[key] = {name: tensor.clone() for name, tensor in tensors.items()}
            held = sum(tensor.nbytes for entry in list(self._held.values()) for tensor in entry.values())
            if held > MOST_HELD_BYTES:
                remedy = f"{error.remedy}, or set data.media.cache_dir to a folder on another disk"
                raise DiskError(error.problem, remedy) from error
            with dispensable("entries of the media cache", self.directory):
                raise

    def _note(self, key: str, num_bytes: int) -> None:
        """Warns when a medium is put a second time and the limit is why: what this process reads does not fit."""
        number = hash(key)
        if number not in self._put:
            self._put.add(number)
            self._put_bytes += num_bytes
        elif self._limit_gb is not None and (needed_gb := self._put_bytes / SHARE_USED / 1e9) > self._limit_gb:
            self._warn_once(
                f"is too small with data.media.cache_limit_gb={self._limit_gb:g}: media of this run are decoded again "
                "in each pass or validation",
                f"; set that key to at least {math.ceil(needed_gb * 1000) / 1000:g}",
            )

    def _make_room(self, num_bytes: int) -> bool:
        """Evicts entries until another one fits; False if none may leave for it."""
        if self._limit_gb is None:
            return True
        limit = self._limit_gb * 1e9
        room, now_s = SHARE_USED * limit - num_bytes, time.time()
        if room < 0:
            self._warn_once(f"has no room for an entry of {num_bytes} bytes")
            return False
        if num_bytes > self._allowance:
            if now_s < self._full_until_s:
                return False
            files = stored_files(self.directory)
            leaving = removable(files, limit_bytes=room, used_before_s=now_s - RECENT_S)
            remove(leaving)
            if sum(file.num_bytes for file in files) - sum(file.num_bytes for file in leaving) > room:
                self._full_until_s = now_s + PATIENCE_S
                self._warn_once("is full of entries in use; media that do not fit are decoded again whenever needed")
                return False
            self._allowance = max(SHARE_UNSEEN * limit, num_bytes)
        self._allowance -= num_bytes
        return True

    def _warn_once(self, reason: str, remedy: str = "; raise data.media.cache_limit_gb") -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            _log.warning("The media cache %s %s%s.", self.directory, reason, remedy)
