"""Decoded media as arrays; no torch here, so that decode workers start fast."""

from dataclasses import dataclass

import numpy as np

UInt8Array = np.ndarray
Float32Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """A picture: `pixels` is [H, W, 3] uint8 RGB, upright; each of `warnings` is a sentence about one oddity."""

    pixels: UInt8Array
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedVideo:
    """Sampled frames of a clip.

    `frames` is [T, H, W, 3] uint8 RGB; `timestamps_s` holds the T presentation times in seconds, which are the contract
    (not frame indices); `duration_s` is the length of the decoded span. Each of `warnings` is a sentence about one
    oddity.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaSettings:
    """Settings for decoding media: the same in training, rollouts, evaluation and prediction.

    Attributes:
        num_frames: Frames sampled uniformly from a clip, at the middles of equal time segments.
        sample_rate_hz: Rate that sound is resampled to.
        max_duration_s: Longer clips are refused.
        max_pixels: Frames with more pixels are refused.
        max_bytes: Larger files are refused.
    """

    num_frames: int = 8
    sample_rate_hz: int = 16_000
    max_duration_s: float = 600.0
    max_pixels: int = 4096 * 4096
    max_bytes: int = 256 * 1024 * 1024
