"""Decoded media as arrays; no torch here, so that decode workers start fast."""

from dataclasses import dataclass, fields

import numpy as np

from lightning_mmrl.settings.data import FRAME_KEYS, MediaSettings

UInt8Array = np.ndarray
Float32Array = np.ndarray

SAMPLE_RATE_HZ = 16_000
"""Rate that every sound is resampled to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSizes:
    """The sizes in which a model's own processor shows pictures and clips; they stand for keys that are null.

    Attributes:
        shown_by: Name of the model's family, for messages.
        factor: Pixels of a side of the square that one token stands for; the sides of a picture are multiples of it.
        image: Fewest and most pixels of a picture.
        frame: Fewest and most pixels of a frame, or of all frames of a clip together.
        per_clip: True if `frame` is about all frames together.
        frame_limit: Most pixels of a frame however few a clip has; None for no such limit.
    """

    shown_by: str
    factor: int
    image: tuple[int, int]
    frame: tuple[int, int]
    per_clip: bool = False
    frame_limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """A picture.

    `pixels` is [H, W, 3] uint8 RGB, upright. `resized_from` is None, or its height and width in the file if it has the
    size that the model sees, so that a processor leaves it as it is. Each of `warnings` is a sentence about one oddity.
    """

    pixels: UInt8Array
    resized_from: tuple[int, int] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedVideo:
    """Sampled frames of a clip.

    `frames` is [T, H, W, 3] uint8 RGB. `timestamps_s` holds the T presentation times in seconds; other code relies on
    these times, not on frame indices. `duration_s` is the length of the decoded span. `resized_from` is None, or height
    and width in the file if the frames have the size that the model sees, so that a processor leaves them as they are.
    Each of `warnings` is a sentence about one oddity.
    """

    frames: UInt8Array
    timestamps_s: tuple[float, ...]
    duration_s: float
    resized_from: tuple[int, int] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def sampled_fps(self) -> float:
        """Sampled frames per second; the model's temporal positions are computed from it."""
        return len(self.timestamps_s) / self.duration_s


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedAudio:
    """A mono waveform [L] float32 in [-1, 1] at `sample_rate_hz`; each of `warnings` is a sentence about one oddity."""

    waveform: Float32Array
    sample_rate_hz: int
    warnings: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.waveform) / self.sample_rate_hz


def decisive(settings: MediaSettings) -> dict[str, int | float | str]:
    """Returns all settings that determine a decoded medium, by name; keys that a subclass adds are left out.

    Keys of `FRAME_KEYS` at their default are left out too, so that media cached before there were such keys are found.

    >>> decisive(MediaSettings(num_frames=4))["num_frames"]
    4
    """
    own = {each.name: getattr(settings, each.name) for each in fields(MediaSettings) if each.name not in FRAME_KEYS}
    return {**own, **settings.chosen, "sample_rate_hz": SAMPLE_RATE_HZ}
