"""Finds the media that a question is about, and checks that a model can read them."""

from collections.abc import Sequence
from pathlib import Path

from lightning_mmrl.data.media.examine import held_kinds
from lightning_mmrl.data.media.guard import DecodeTask, GuardedDecoder
from lightning_mmrl.errors import MediaError
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaKind, MediaRef
from lightning_mmrl.workers.pool import CallResult

Medium = tuple[Path, MediaRef]
"""A file, and the track of it that the question is about."""


def unread(kind: MediaKind, encoder: PromptEncoder) -> str | None:
    """Returns a phrase that says which kinds of media the model reads; None if it reads `kind`."""
    if kind in encoder.media_kinds:
        return None
    reads = ", ".join(["text", *sorted(encoder.media_kinds)]) if encoder.media_kinds else "text alone"
    return f"{encoder.family} reads {reads}"


def chosen_media(
    files: Sequence[Path], settings: MediaSettings, decoder: GuardedDecoder, *, sound: Path | None, hear: bool
) -> tuple[Medium, ...]:
    """Returns all tracks of each file, found from its content; a separate sound comes last.

    Args:
        files: Videos, pictures and sounds.
        settings: Decode limits.
        decoder: The decoder whose workers inspect the files.
        sound: A sound file that replaces the sound of the videos.
        hear: False to leave out the sound of videos.

    Raises:
        MediaError: A file does not exist, is a folder or holds no track.
    """
    for path in (*files, *([] if sound is None else [sound])):
        if path.is_dir():
            raise MediaError(f"{path} is a folder; name a video, picture or sound file")
        if not path.is_file():
            raise MediaError(f"{path} does not exist; name a video, picture or sound file")
    anything = [DecodeTask(path=path, ref=MediaRef(kind="video", path=path.name), settings=settings) for path in files]
    outcomes: dict[int, CallResult] = {}
    decoder.run(held_kinds, anything, outcomes.__setitem__)
    media: list[Medium] = []
    for index, path in enumerate(files):
        if outcomes[index].error is not None:
            raise MediaError(outcomes[index].error)
        kinds: list[MediaKind] = outcomes[index].value
        drops_sound = "video" in kinds and (sound is not None or not hear)
        media += [
            (path, MediaRef(kind=kind, path=path.name)) for kind in kinds if not (kind == "audio" and drops_sound)
        ]
    return (*media, *([] if sound is None else [(sound, MediaRef(kind="audio", path=sound.name))]))


def check_read(media: Sequence[Medium], encoder: PromptEncoder) -> None:
    """Checks that the model reads every medium of a question.

    Raises:
        MediaError: The model does not read one of the kinds.
    """
    for path, ref in media:
        if reads := unread(ref.kind, encoder):
            is_of_video = ref.kind == "audio" and any(other == path and each.kind == "video" for other, each in media)
            fix = "give --no-audio" if is_of_video else "name another file, or a model that reads it"
            raise MediaError(f"{path} holds {ref.kind}, and {reads}; {fix}")
