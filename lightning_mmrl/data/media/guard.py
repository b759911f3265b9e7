"""Guarded decoding: a file is opened once, checked against the limits, and decoded in a worker that can be killed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from lightning_mmrl.data.media.audio import read_audio
from lightning_mmrl.data.media.image import read_image
from lightning_mmrl.data.media.opened import Identity, MediaFile, open_media
from lightning_mmrl.data.media.quiet import quietly
from lightning_mmrl.data.media.video import read_video
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, DecodedVideo, OwnSizes
from lightning_mmrl.types.records import MediaKind, MediaRef
from lightning_mmrl.workers.pool import CallResult, DeadlinePool, WorkerError
from lightning_mmrl.workers.serving import OVERTIME, Limits, call_here, lower_processor_time, note_shortage

T = TypeVar("T")

_TRIES = 3
"""Number of attempts to read a file; an attempt fails if something writes to the file during the read."""

_LEAST_SHARE, _SHARE_PER_MIB = 0.2, 0.05
"""Processor time granted to a file, as a share of the deadline: a base share, plus a share for each MiB.

A small file that takes long is usually crafted to do so.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeTask:
    """One medium to decode.

    Attributes:
        path: The file of the medium, with all links resolved.
        ref: The kind and span to decode.
        settings: Decode settings and limits.
        own: Sizes of the model that sees the medium; with None, pictures and frames keep the size of their file.
        root: The folder that must contain the opened file; None for a file that the user named.
        seen: Identity of the file when it was last examined; if this is given, the file must still be the same.
    """

    path: Path
    ref: MediaRef
    settings: MediaSettings
    own: OwnSizes | None = None
    root: Path | None = None
    seen: Identity | None = None


def decode(task: DecodeTask) -> DecodedImage | DecodedVideo | DecodedAudio:
    """Decodes one medium in this process.

    Raises:
        MediaError: The file exceeds a limit or cannot be decoded.
    """
    return within_limits(task, lambda file: read(file, task))


def read(file: MediaFile, task: DecodeTask) -> DecodedImage | DecodedVideo | DecodedAudio:
    """Decodes the medium of a task from its open file.

    Raises:
        MediaError: The file exceeds a limit or cannot be decoded.
    """
    own = () if task.ref.kind == "audio" else (task.own,)
    return READERS[task.ref.kind](file, task.ref, task.settings, *own)


@quietly
def within_limits(task: DecodeTask, read: Callable[[MediaFile], T]) -> T:
    """Opens the file of a task, checks it and returns what `read` returns for it.

    Raises:
        MediaError: `read` raised it; or the file lies outside the root, exceeds the limit on bytes, is written to
            during the read, or needs more memory than is allowed.
    """
    path, settings = task.path, task.settings
    try:
        for _ in range(_TRIES):
            with open_media(path, task.root) as file:
                if task.seen is not None and file.identity != task.seen:
                    raise MediaError(f"{path}: it has changed since it was looked at; run again")
                if file.size > settings.max_bytes:
                    raise MediaError(
                        f"{path}: {file.size} bytes exceed media.max_bytes {settings.max_bytes}; cut the file"
                    )
                lower_processor_time(_LEAST_SHARE + _SHARE_PER_MIB * file.size / 2**20)
                found = read(file)
                if file.unchanged():
                    return found
    except MemoryError as error:
        note_shortage()
        raise MediaError(
            f"{path}: decoding it takes more than data.media.decode_memory_mb, or --memory-mb; scale it down or cut "
            "it, or raise that limit"
        ) from error
    raise MediaError(f"{path}: it changes while it is read; run again when nothing writes to it")


READERS: Mapping[MediaKind, Callable[..., Any]] = {"image": read_image, "video": read_video, "audio": read_audio}


class GuardedDecoder:
    """Runs decoders in spawned workers; if a file hangs or crashes its decoder, only that file fails.

    Args:
        workers: Number of decoder processes. With 0, files are decoded in this process: one that hangs or crashes its
            decoder then takes the run with it.
        deadline_s: Seconds that one medium may take; a small file gets less processor time than that.
        memory_mb: MiB that a worker may allocate beyond its memory at the start (on Linux).
    """

    def __init__(self, *, workers: int = 2, deadline_s: float = 30.0, memory_mb: int = 1024) -> None:
        self.workers = workers
        self.deadline_s = deadline_s
        self.memory_mb = memory_mb

    def decode_all(self, tasks: Sequence[DecodeTask], on_done: Callable[[int, CallResult], None]) -> None:
        """Decodes all tasks and passes each outcome on as soon as it is ready; no outcome is kept."""
        self.run(decode, tasks, on_done)

    def run(
        self,
        function: Callable[[DecodeTask], object],
        tasks: Sequence[DecodeTask],
        on_done: Callable[[int, CallResult], None],
    ) -> None:
        """Like `decode_all`, for any function that reads media through `within_limits`; errors name the file."""
        with DecoderSession(function, self, workers=min(self.workers, len(tasks))) as session:
            session.decode_all(tasks, on_done)

    def session(self) -> "DecoderSession":
        """A context in which the workers stay from one `decode_all` to the next."""
        return DecoderSession(decode, self, workers=self.workers)


class DecoderSession:
    """Workers that call one function on tasks until the session is closed; they start with the first task."""

    def __init__(self, function: Callable[[DecodeTask], object], decoder: GuardedDecoder, *, workers: int) -> None:
        self._function = function
        self._decoder = decoder
        self._workers = workers
        self._pool: DeadlinePool | None = None
        self._ended = False

    def decode_all(self, tasks: Sequence[DecodeTask], on_done: Callable[[int, CallResult], None]) -> None:
        """Calls the function on all tasks and passes each outcome on as soon as it is ready; errors name the file.

        Raises:
            WorkerError: The workers cannot start, or `end` was called.
        """
        if not tasks:
            return
        if not self._workers:
            for index, task in enumerate(tasks):
                on_done(index, _named(task, call_here(self._function, task)))
            return
        if self._pool is None:
            self._pool = self._start()

        def report(start: int, index: int, outcome: CallResult) -> None:
            on_done(start + index, _named(tasks[start + index], outcome))

        for start in range(0, len(tasks), BATCH):
            if self._ended:
                raise WorkerError("the decoding was ended")
            self._pool.map_patiently(tasks[start : start + BATCH], on_done=partial(report, start))

    def end(self) -> None:
        """Kills the workers, from any thread; a `decode_all` that is running elsewhere ends with a WorkerError."""
        self._ended = True
        if self._pool is not None:
            self._pool.kill()

    def close(self) -> None:
        """Ends the workers."""
        self._ended = True
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> DeadlinePool:
        decoder = self._decoder
        return DeadlinePool(
            self._function,
            num_workers=self._workers,
            deadline_s=decoder.deadline_s,
            limits=Limits(memory_bytes=decoder.memory_mb * 2**20, processor_s=decoder.deadline_s),
            deadline_key="data.media.decode_deadline_s or --deadline",
        )


def _named(task: DecodeTask, outcome: CallResult) -> CallResult:
    """The outcome, with the file in its error."""
    path, error = task.path, outcome.error
    if error is None or str(path) in error:
        return outcome
    return replace(outcome, error=f"{path}: {_OVERTIME if error == OVERTIME else error}")


BATCH = 64
"""Number of media that are decoded together; it limits the memory for decoded frames."""

_OVERTIME = (
    "decoding it takes more processor time than data.media.decode_deadline_s, or --deadline, grants a file of its "
    "size; cut it, scale it down, or raise that deadline"
)
