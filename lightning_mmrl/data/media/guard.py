"""Decoding behind a guard: limits before decoding, killable workers with a deadline while decoding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_mmrl.data.media.audio import decode_audio
from lightning_mmrl.data.media.image import decode_image
from lightning_mmrl.data.media.quiet import quietly
from lightning_mmrl.data.media.video import decode_video
from lightning_mmrl.errors import MediaError
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, DecodedVideo, MediaSettings
from lightning_mmrl.types.records import MediaRef
from lightning_mmrl.workers.pool import DeadlinePool, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeTask:
    """One medium to decode."""

    path: Path
    ref: MediaRef
    settings: MediaSettings


@quietly
def decode(task: DecodeTask) -> DecodedImage | DecodedVideo | DecodedAudio:
    """Decodes one medium in this process, after the size limit.

    Raises:
        MediaError: It breaks a limit or cannot be decoded.
    """
    check_bytes(task.path, task.settings)
    return DECODERS[task.ref.kind](task.path, task.ref, task.settings)


def check_bytes(path: Path, settings: MediaSettings) -> None:
    """Looks at a file's size before anything opens it.

    Raises:
        MediaError: It is too large.
    """
    size = path.stat().st_size
    if size > settings.max_bytes:
        raise MediaError(f"{path}: {size} bytes exceed media.max_bytes {settings.max_bytes}; cut the file")


DECODERS = {"image": decode_image, "video": decode_video, "audio": decode_audio}


class GuardedDecoder:
    """Decodes in spawned workers; a file that hangs or crashes a decoder costs that file, never the run.

    Args:
        workers: Decoder processes.
        deadline_s: Seconds one medium may take.
    """

    def __init__(self, *, workers: int = 2, deadline_s: float = 30.0) -> None:
        self._workers = workers
        self._deadline_s = deadline_s

    def decode_all(self, tasks: Sequence[DecodeTask], on_done: Callable[[int, Outcome], None]) -> None:
        """Decodes everything and hands over each outcome as it comes; nothing is kept."""
        if not tasks:
            return
        with DeadlinePool(decode, num_workers=min(self._workers, len(tasks)), deadline_s=self._deadline_s) as pool:
            for start in range(0, len(tasks), BATCH):
                chunk = tasks[start : start + BATCH]
                pool.map_patiently(chunk, on_done=lambda index, outcome, base=start: on_done(base + index, outcome))


BATCH = 64
"""Media in flight between two reports: bounds the memory that decoded frames take."""
