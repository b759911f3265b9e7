"""Hashes of the contents of media files, indexed on disk, so that a restarted run need not read every file again."""

import json
import logging
import os
import re
import time
import zlib
from pathlib import Path

from lightning_mmrl.data.media.opened import Identity, MediaFile
from lightning_mmrl.files import dispensable, writing

RACY_S = 2.0
"""A file that changed within so many seconds before it was hashed could change again without a new time of change."""

_log = logging.getLogger(__name__)
_LINE = re.compile(rb"([0-9a-f]{8}) (([0-9a-f]{64}) (.+))")
_MOST_KNOWN = 65_536
_known: dict[Identity, str] = {}
"""Hashes of the files that this process has read already."""


class HashIndex:
    """Hashes by path and identity of a file, appended to a text file, one line each.

    A line is "CRC-32 SHA-256 DEVICE INODE SIZE CHANGED_NS PATH", with the path as a JSON text. Any number of processes
    may share the file: a line is written in one call, and a damaged one is left out. A file whose identity is another
    now, or that changed within `RACY_S`, is read again.

    Args:
        path: The text file, which the first hash creates.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[bytes, bytes] | None = None
        self._is_cut = False

    def sha256(self, file: MediaFile) -> str:
        """The hash of an open file's content, read from the file only if it is not known.

        A disk that refuses the index costs a warning.
        """
        if (known := _known.get(file.identity)) is not None:  # another thread may clear it
            return known
        subject = f"{' '.join(map(str, file.identity))} {json.dumps(str(file.path))}".encode()
        found = self._entries().get(subject)
        if found is None:
            racy = time.time_ns() - file.identity.changed_ns < RACY_S * 1e9
            content = file.sha256()
            if not racy and file.unchanged():
                self._append(content, subject)
        else:
            content = found.hex()
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[file.identity] = content
        return content

    def _entries(self) -> dict[bytes, bytes]:
        """Hashes by the rest of their lines; the file is read once."""
        if self._found is not None:
            return self._found
        self._found, damaged = {}, 0
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return self._found
        except OSError as error:
            _log.warning("%s cannot be read (%s); all media files are hashed anew.", self.path, error.strerror)
            return self._found
        self._is_cut = not content.endswith(b"\n")
        for line in content.splitlines():
            match = _LINE.fullmatch(line)
            if match is not None and int(match[1], 16) == zlib.crc32(match[2]):
                self._found[match[4]] = bytes.fromhex(match[3].decode())
            else:
                damaged += 1
        if damaged:
            _log.warning("%d lines of %s are damaged; their files are hashed anew.", damaged, self.path)
        return self._found

    def _append(self, content: str, subject: bytes) -> None:
        self._entries()[subject] = bytes.fromhex(content)
        text = content.encode() + b" " + subject
        line = f"{zlib.crc32(text):08x} ".encode() + text + b"\n"
        with dispensable("content hashes of media", self.path.parent), writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                # A line that a killed process left unfinished must not spoil this one.
                os.write(descriptor, b"\n" + line if self._is_cut else line)
                self._is_cut = False
            finally:
                os.close(descriptor)
