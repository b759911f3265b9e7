"""Examines media by decoding them as training does; runs in decode workers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lightning_mmrl.data.media.containers import open_container
from lightning_mmrl.data.media.guard import DecodeTask, GuardedDecoder, read, within_limits
from lightning_mmrl.data.media.image import identify
from lightning_mmrl.data.media.opened import MediaFile
from lightning_mmrl.data.media.tracks import find_tracks
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, OwnSizes
from lightning_mmrl.types.records import MediaKind, MediaRef
from lightning_mmrl.workers.pool import CallResult

# Maps words of a decoder's message to the name under which a report counts the fault; the first match wins.
_FAULTS: Mapping[str, str] = {
    "no audio track": "no audio track",
    "no video track": "no video track",
    "no video or audio track": "no video or audio track",
    "media.max_duration_s": "too long",
    "media.max_pixels": "too many pixels",
    "media.max_bytes": "too many bytes",
    "is empty in": "empty span",
    "too few frames": "too few frames",
    "sides in a ratio": "no size for the model",
    "have no size of": "no size for the model",
    "holds NaN or infinity": "sound not finite",
    "where full scale is 1": "sound out of scale",
    "its clock jumps": "clock jumps back",
    "an image has no time": "span",
    "decode_memory_mb": "too much memory",
    "processor time": "decoder ran out of time",
    "deadline of": "decoder ran out of time",
    "worker died": "decoder crashed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaFacts:
    """Facts about a decoded medium: the duration of its span, the rates and the content hash of its file.

    `warnings` come from the decoder: each is a sentence that names the file and says what is odd about it.
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
    """Limits of an examination: decode limits, the model's own sizes, worker processes, seconds and memory."""

    settings: MediaSettings
    own: OwnSizes | None = None
    num_workers: int = 2
    deadline_s: float = 30.0
    memory_mb: int = 1024

    def run(
        self,
        examination: Callable[[DecodeTask], object],
        media: Sequence[tuple[Path, MediaRef]],
        root: Path,
        on_progress: Callable[[int, int], None],
    ) -> list[CallResult]:
        """Returns the outcomes of `examination` in the order of the media, which lie below `root`.

        Errors name the file.
        """
        tasks = [DecodeTask(path=path, ref=ref, settings=self.settings, own=self.own, root=root) for path, ref in media]
        outcomes: dict[int, CallResult] = {}

        def count(index: int, outcome: CallResult) -> None:
            outcomes[index] = outcome
            on_progress(len(outcomes), len(tasks))

        decoder = GuardedDecoder(workers=self.num_workers, deadline_s=self.deadline_s, memory_mb=self.memory_mb)
        decoder.run(examination, tasks, count)
        return [outcomes[index] for index in range(len(tasks))]


def examine(task: DecodeTask) -> MediaFacts:
    """Decodes one medium and returns its facts.

    Raises:
        MediaError: The file exceeds a limit or cannot be decoded.
    """
    return within_limits(task, lambda file: _facts(file, task))


def examine_tracks(task: DecodeTask) -> tuple[MediaFacts, ...]:
    """Decodes everything that a file holds: an image, or its video and its sound; the kind of `task.ref` is ignored.

    Raises:
        MediaError: A track exceeds a limit or cannot be decoded, or there is none.
    """

    def facts(file: MediaFile) -> tuple[MediaFacts, ...]:
        kinds = media_kinds(file, task.settings)
        return tuple(_facts(file, replace(task, ref=replace(task.ref, kind=kind))) for kind in kinds)

    return within_limits(task, facts)


def held_kinds(task: DecodeTask) -> list[MediaKind]:
    """The kinds of media that a file holds, see `media_kinds`; the kind of `task.ref` is ignored.

    Raises:
        MediaError: The file exceeds the limit on bytes, has no known format, or holds no track.
    """
    return within_limits(task, lambda file: media_kinds(file, task.settings))


def _facts(file: MediaFile, task: DecodeTask) -> MediaFacts:
    decoded, settings = read(file, task), task.settings
    content = file.sha256()
    if isinstance(decoded, DecodedImage):
        height, width = decoded.resized_from or decoded.pixels.shape[:2]
        return MediaFacts(kind="image", content=content, size=(width, height), warnings=decoded.warnings)
    if isinstance(decoded, DecodedAudio):
        return MediaFacts(
            kind="audio",
            content=content,
            duration_s=decoded.duration_s,
            sample_rate_hz=_rates(file, settings)[1],
            warnings=decoded.warnings,
        )
    height, width = decoded.resized_from or decoded.frames.shape[1:3]
    return MediaFacts(
        kind="video",
        content=content,
        duration_s=decoded.duration_s,
        frame_rate=_rates(file, settings)[0],
        size=(width, height),
        warnings=decoded.warnings,
    )


def fault(reason: str) -> str:
    """The sort of fault that a decoder's message reports.

    >>> fault("a.mp4: no audio track; remove the <audio> tag"), fault("a.mp4: video cannot be decoded (...)")
    ('no audio track', 'cannot be decoded')
    """
    return next((name for words, name in _FAULTS.items() if words in reason), "cannot be decoded")


def media_kinds(file: MediaFile, settings: MediaSettings) -> list[MediaKind]:
    """The kinds of media in the content of a file: an image, or a video, a sound or both; cover pictures do not count.

    Raises:
        MediaError: The file has no known format, has too many pixels, or holds no track.
    """
    picture = identify(file, settings)
    if picture is not None:
        return ["video"] if picture == "moving" else ["image"]
    with open_container(file, settings) as container:
        tracks = find_tracks(file, container)
        found: list[MediaKind] = []
        if tracks.video is not None:
            found.append("video")
        if tracks.sound is not None:
            found.append("audio")
    if not found:
        raise MediaError(f"{file.path}: no video or audio track; re-encode or remove it")
    return found


def _rates(file: MediaFile, settings: MediaSettings) -> tuple[float | None, int | None]:
    """The frame rate and the sample rate that a file declares, in Hz."""
    if identify(file, settings) is not None:
        return None, None
    with open_container(file, settings) as container:
        tracks = find_tracks(file, container)
        frame_rate = tracks.video.average_rate if tracks.video is not None else None
        return float(frame_rate) if frame_rate else None, tracks.sound.rate if tracks.sound is not None else None
