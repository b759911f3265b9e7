"""Decoding within bounds: a file opened once, its limits checked first, in workers that can be killed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from lightning_mmrl.data.media.audio import read_audio
from lightning_mmrl.data.media.image import read_image
from lightning_mmrl.data.media.opened import Identity, MediaFile, open_media
from lightning_mmrl.data.media.quiet import quietly
from lightning_mmrl.data.media.video import read_video
from lightning_mmrl.errors import MediaError
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, DecodedVideo, MediaSettings
from lightning_mmrl.types.records import MediaRef
from lightning_mmrl.workers.pool import DeadlinePool, Outcome
from lightning_mmrl.workers.serving import OVERTIME, Limits, lower_processor_time

T = TypeVar("T")

_TRIES = 3
"""How often a file is read that is written to at the same time."""

_LEAST_SHARE, _SHARE_PER_MIB = 0.2, 0.05
"""Of the deadline, the processor time that a file may take: a small one that takes long is made to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeTask:
    """One medium to decode.

    Attributes:
        path: Its file, free of links.
        ref: What of it.
        settings: How, and within which limits.
        root: The folder that the file must lie below when it is open; None for a file that the user named.
        seen: What was found under this name before, if anything: the file must still be that one.
    """

    path: Path
    ref: MediaRef
    settings: MediaSettings
    root: Path | None = None
    seen: Identity | None = None


def decode(task: DecodeTask) -> DecodedImage | DecodedVideo | DecodedAudio:
    """Decodes one medium in this process.

    Raises:
        MediaError: It breaks a limit or cannot be decoded.
    """
    return within_limits(task, lambda file: READERS[task.ref.kind](file, task.ref, task.settings))


@quietly
def within_limits(task: DecodeTask, read: Callable[[MediaFile], T]) -> T:
    """What `read` finds in the file of a task, which is open as long as it runs.

    Raises:
        MediaError: As `read`; or the file lies elsewhere, breaks the limit on bytes, is written to at the same time, or
            takes more memory than there is.
    """
    path = task.path
    try:
        for _ in range(_TRIES):
            with open_media(path, task.root) as file:
                if task.seen is not None and file.identity != task.seen:
                    raise MediaError(f"{path}: it has changed since it was looked at; run again")
                check_bytes(file, task.settings)
                lower_processor_time(_LEAST_SHARE + _SHARE_PER_MIB * file.size / 2**20)
                found = read(file)
                if file.unchanged():
                    return found
    except MemoryError as error:
        raise MediaError(
            f"{path}: decoding it takes more than data.media.decode_memory_mb, or --memory-mb; scale it down or cut "
            "it, or raise that limit"
        ) from error
    raise MediaError(f"{path}: it changes while it is read; run again when nothing writes to it")


def check_bytes(file: MediaFile, settings: MediaSettings) -> None:
    """Looks at a file's size before anything reads it.

    Raises:
        MediaError: It is too large.
    """
    if file.size > settings.max_bytes:
        raise MediaError(f"{file.path}: {file.size} bytes exceed media.max_bytes {settings.max_bytes}; cut the file")


READERS = {"image": read_image, "video": read_video, "audio": read_audio}


class GuardedDecoder:
    """Runs decoders in spawned workers; a file that hangs or crashes a decoder costs that file, never the run.

    Args:
        workers: Decoder processes.
        deadline_s: Seconds one medium may take; of processor time a small file gets less.
        memory_mb: MiB that a worker may take on top of what it starts with (on Linux).
    """

    def __init__(self, *, workers: int = 2, deadline_s: float = 30.0, memory_mb: int = 1024) -> None:
        self._workers = workers
        self._deadline_s = deadline_s
        self._memory_mb = memory_mb

    def decode_all(self, tasks: Sequence[DecodeTask], on_done: Callable[[int, Outcome], None]) -> None:
        """Decodes everything and gives each outcome as it comes; nothing is kept."""
        self.run(decode, tasks, on_done)

    def run(
        self,
        function: Callable[[DecodeTask], object],
        tasks: Sequence[DecodeTask],
        on_done: Callable[[int, Outcome], None],
    ) -> None:
        """As `decode_all`, for any function that reads media through `within_limits`."""
        if not tasks:
            return

        def told(start: int, index: int, outcome: Outcome) -> None:
            on_done(start + index, _in_words(tasks[start + index], outcome))

        limits = Limits(memory_bytes=self._memory_mb * 2**20, processor_s=self._deadline_s)
        workers = min(self._workers, len(tasks))
        key = "data.media.decode_deadline_s or --deadline"
        with DeadlinePool(
            function, num_workers=workers, deadline_s=self._deadline_s, limits=limits, deadline_key=key
        ) as pool:
            for start in range(0, len(tasks), BATCH):
                pool.map_patiently(tasks[start : start + BATCH], on_done=partial(told, start))


BATCH = 64
"""Media in flight between two reports: bounds the memory that decoded frames take."""

_OVERTIME = (
    "decoding it takes more processor time than data.media.decode_deadline_s, or --deadline, grants a file of its "
    "size; cut it, scale it down, or raise that deadline"
)


def _in_words(task: DecodeTask, outcome: Outcome) -> Outcome:
    """The outcome with an error that names the file."""
    if outcome.error is None or str(task.path) in outcome.error:
        return outcome
    error = _OVERTIME if outcome.error == OVERTIME else outcome.error
    return replace(outcome, error=f"{task.path}: {error}")
