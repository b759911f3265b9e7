"""What a medium is, found out by decoding it as training would; runs in decode workers."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_mmrl.data.media.containers import open_container
from lightning_mmrl.data.media.guard import DecodeTask, check_bytes, decode
from lightning_mmrl.data.media.image import identify
from lightning_mmrl.data.media.tracks import find_tracks
from lightning_mmrl.errors import MediaError
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, MediaSettings
from lightning_mmrl.types.records import MediaKind, MediaRef
from lightning_mmrl.workers.pool import DeadlinePool, Outcome

# What the decoders' messages say, by the name under which a report counts it; the first that fits.
_FAULTS: Mapping[str, str] = {
    "no audio track": "no audio track",
    "no video track": "no video track",
    "no video or audio track": "no video or audio track",
    "media.max_duration_s": "too long",
    "media.max_pixels": "too many pixels",
    "media.max_bytes": "too many bytes",
    "is empty in": "empty span",
    "holds NaN or infinity": "sound not finite",
    "where full scale is 1": "sound out of scale",
    "its clock jumps": "clock jumps back",
    "an image has no time": "span",
    "deadline of": "decoder ran out of time",
    "worker died": "decoder crashed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaFacts:
    """A decoded medium: of its span the duration, of its file the rates and the content's hash.

    `warnings` are the decoder's: what is odd about a medium that can be used, a sentence each that names the file.
    """

    kind: MediaKind
    content: str
    duration_s: float | None = None
    frame_rate: float | None = None
    size: tuple[int, int] | None = None
    sample_rate_hz: int | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """How examination is kept in bounds: decoding limits, worker processes, seconds per medium."""

    settings: MediaSettings
    num_workers: int = 2
    deadline_s: float = 30.0

    def run(
        self,
        examination: Callable[[DecodeTask], object],
        media: Sequence[tuple[Path, MediaRef]],
        on_progress: Callable[[int, int], None],
    ) -> list[Outcome]:
        """Outcomes of `examination` in the order of the media; errors name the file."""
        if not media:
            return []
        tasks = [DecodeTask(path=path, ref=ref, settings=self.settings) for path, ref in media]
        done = 0

        def count(_: int, __: Outcome) -> None:
            nonlocal done
            done += 1
            on_progress(done, len(tasks))

        workers = min(self.num_workers, len(tasks))
        with DeadlinePool(examination, num_workers=workers, deadline_s=self.deadline_s) as pool:
            outcomes = pool.map_patiently(tasks, on_done=count)
        return [
            outcome
            if outcome.error is None or str(task.path) in outcome.error
            else Outcome(error=f"{task.path}: {outcome.error}")
            for task, outcome in zip(tasks, outcomes, strict=True)
        ]


def examine(task: DecodeTask) -> MediaFacts:
    """Decodes one medium and says what it is.

    Raises:
        MediaError: It breaks a limit or cannot be decoded.
    """
    decoded = decode(task)
    content = _content(task.path)
    if isinstance(decoded, DecodedImage):
        height, width = decoded.pixels.shape[:2]
        return MediaFacts(kind="image", content=content, size=(width, height), warnings=decoded.warnings)
    if isinstance(decoded, DecodedAudio):
        return MediaFacts(
            kind="audio",
            content=content,
            duration_s=decoded.duration_s,
            sample_rate_hz=_rates(task.path)[1],
            warnings=decoded.warnings,
        )
    height, width = decoded.frames.shape[1:3]
    return MediaFacts(
        kind="video",
        content=content,
        duration_s=decoded.duration_s,
        frame_rate=_rates(task.path)[0],
        size=(width, height),
        warnings=decoded.warnings,
    )


def examine_tracks(task: DecodeTask) -> tuple[MediaFacts, ...]:
    """Decodes everything that a file holds: an image, or its video and its sound; the kind of `task.ref` is ignored.

    Raises:
        MediaError: A track breaks a limit or cannot be decoded, or there is none.
    """
    ref = task.ref
    kinds = media_kinds(task.path, task.settings)
    refs = [MediaRef(kind=kind, path=ref.path, start_s=ref.start_s, end_s=ref.end_s) for kind in kinds]
    return tuple(examine(DecodeTask(path=task.path, ref=each, settings=task.settings)) for each in refs)


def fault(reason: str) -> str:
    """The sort of fault that a decoder's message tells of.

    >>> fault("a.mp4: no audio track; remove the <audio> tag"), fault("a.mp4: video cannot be decoded (...)")
    ('no audio track', 'cannot be decoded')
    """
    return next((name for words, name in _FAULTS.items() if words in reason), "cannot be decoded")


def media_kinds(path: Path, settings: MediaSettings) -> list[MediaKind]:
    """The kinds that a file holds by its content: an image, or a video, a sound or both; covers do not count.

    Raises:
        MediaError: It breaks the limit on bytes, is of no known format, or holds no track.
    """
    check_bytes(path, settings)
    picture = identify(path)
    if picture is not None:
        return ["video"] if picture == "moving" else ["image"]
    with open_container(path) as container:
        tracks = find_tracks(container)
        found: list[MediaKind] = []
        if tracks.video is not None:
            found.append("video")
        if tracks.sound is not None:
            found.append("audio")
    if not found:
        raise MediaError(f"{path}: no video or audio track; re-encode or remove it")
    return found


def _rates(path: Path) -> tuple[float | None, int | None]:
    """Frames per second and samples per second that a file declares."""
    if identify(path) is not None:
        return None, None
    with open_container(path) as container:
        tracks = find_tracks(container)
        frame_rate = tracks.video.average_rate if tracks.video is not None else None
        return float(frame_rate) if frame_rate else None, tracks.sound.rate if tracks.sound is not None else None


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
