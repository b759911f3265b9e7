"""Decoded media as arrays; no torch here, so that decode workers start fast."""

from dataclasses import dataclass, fields

import numpy as np

from lightning_mmrl.settings.data import MediaSettings

UInt8Array = np.ndarray
Float32Array = np.ndarray

SAMPLE_RATE_HZ = 16_000
"""Rate that every sound is resampled to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """A picture: `pixels` is [H, W, 3] uint8 RGB, upright; each of `warnings` is a sentence about one oddity."""

    pixels: UInt8Array
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedVideo:
    """Sampled frames of a clip.

    `frames` is [T, H, W, 3] uint8 RGB. `timestamps_s` holds the T presentation times in seconds; other code relies on
    these times, not on frame indices. `duration_s` is the length of the decoded span. Each of `warnings` is a sentence
    about one oddity.
    """

    frames: UInt8Array
    timestamps_s: tuple[float, ...]
    duration_s: float
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


def decisive(settings: MediaSettings) -> dict[str, int | float]:
    """Returns all settings that determine a decoded medium, by name; keys that a subclass adds are left out.

    >>> decisive(MediaSettings(num_frames=4))["num_frames"]
    4
    """
    own = {each.name: getattr(settings, each.name) for each in fields(MediaSettings)}
    return {**own, "sample_rate_hz": SAMPLE_RATE_HZ}
