"""Counts the tokens of a clip of assumed length and size, by the keys of frames and sizes."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_mmrl.data.media.sizes import FRAME_FACTOR, frame_bounds, own_frame_bounds, smart_nframes, smart_resize
from lightning_mmrl.errors import ConfigError, MediaError
from lightning_mmrl.planning.memory import Lengths
from lightning_mmrl.planning.shapes import ModelShape
from lightning_mmrl.planning.stacks import Stack
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import OwnSizes

CLIP = "--clip"
"""Flag for the clip whose tokens are counted."""
_RATE = 30.0
_FORM = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})x(\d{1,6}(?:\.\d+)?)")
_OPEN = 2**62
"""Stands for bounds that are not known."""
_FILES = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A clip of 30 frames a second: pixels of its sides, and seconds."""

    width: int = 640
    height: int = 360
    seconds: float = 10.0

    @classmethod
    def parse(cls, text: str) -> "Clip":
        """Reads `WIDTHxHEIGHTxSECONDS`.

        Raises:
            ConfigError: The text has another form.

        >>> Clip.parse("1280x720x10")
        Clip(width=1280, height=720, seconds=10.0)
        """
        found = _FORM.fullmatch(text)
        if found is None or float(found[3]) <= 0:
            raise ConfigError(f"{CLIP} is {text!r}; it must be WIDTHxHEIGHTxSECONDS, such as 1280x720x10")
        return cls(width=int(found[1]), height=int(found[2]), seconds=float(found[3]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The frames of a clip, the pixels of their sides, and the tokens of them all."""

    frames: int
    width: int
    height: int
    tokens: int


def count(clip: Clip, media: MediaSettings, own: OwnSizes) -> Counted:
    """Counts the tokens of a clip.

    Raises:
        MediaError: The keys refuse the clip.
    """
    frames = media.num_frames
    if media.fps is not None or media.frame_rule != "middles":
        frames = smart_nframes(media, max(1, round(clip.seconds * _RATE)), _RATE)
    if not frames:
        raise MediaError("it has too few frames")
    bounds = frame_bounds(frames, media, own) if media.sizes_frames else own_frame_bounds(frames, own)
    height, width = smart_resize(clip.height, clip.width, own.factor, *bounds)
    pairs = -(-frames // FRAME_FACTOR)
    tokens = pairs * (height // own.factor) * (width // own.factor)
    return Counted(frames=frames, width=width, height=height, tokens=tokens)


def lengths_with_clip(
    lengths: Lengths, clip: Clip | None, media: MediaSettings, shape: ModelShape, checkpoint: str
) -> tuple[Lengths, str | None]:
    """Lengths with the tokens of a clip in place of an assumed share, and a line about them.

    Without a clip and without a key that says how clips are shown, the lengths stay as they are. A prompt whose length
    is not given gets as many tokens more, or fewer, as its clip has beyond the assumed share.

    Raises:
        ConfigError: The keys refuse the clip.
    """
    tower = shape.stacks.get("vision")
    if tower is None or (clip is None and not media.chosen):
        return lengths, None
    clip, asked = clip or Clip(), Lengths()
    own = own_sizes(checkpoint, tower)
    try:
        found = count(clip, media, own)
    except MediaError as error:
        size = f"{clip.width}x{clip.height}x{clip.seconds:g}"
        raise ConfigError(f"a clip of {size} cannot be shown by data.media: {error}; give another {CLIP}") from error
    prompt = lengths.prompt
    if prompt == asked.prompt:
        prompt += found.tokens - asked.media("vision")
    unknown = " (bounds of the processor are not known)" if _OPEN in own.frame else ""
    line = (
        f"a clip of {clip.width} x {clip.height}, {clip.seconds:g} s ({CLIP}) is {found.frames} frames of "
        f"{found.width} x {found.height}, {found.tokens:,} tokens{unknown}"
    )
    return replace(lengths, prompt=prompt, clip=found.tokens), line


def own_sizes(checkpoint: str, tower: Stack) -> OwnSizes:
    """The bounds of the processor of a local checkpoint; open bounds where it says none, or is not here."""
    square = tower.square**2
    images, clips = (next(_bounds(Path(checkpoint), kind), (square, _OPEN)) for kind in ("image", "video"))
    return OwnSizes(shown_by="the model", factor=tower.square, image=images, frame=clips, per_clip=tower.sizes_clips)


def _bounds(folder: Path, kind: str) -> Iterator[tuple[int, int]]:
    """Fewest and most pixels, from each file that says them; older ones have no file for clips alone."""
    for name in _FILES:
        if not (folder / name).is_file() or (kind == "image" and name.startswith("video")):
            continue
        found: Mapping[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
        found = found.get(f"{kind}_processor", {}) if name.startswith("processor") else found
        size: Mapping[str, Any] = found.get("size") or {}
        least, most = (
            size.get(edge, found.get(key))
            for edge, key in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels"))
        )
        if isinstance(least, int) and isinstance(most, int):
            yield least, most
