"""Mixes the channels of a sound into one, on one clock, and detects faults of the sound."""

from pathlib import Path

import numpy as np

from lightning_mmrl.data.media.selection import check_order
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings

_JITTER_S = 0.010
"""Largest error of timestamps in a sound without gaps: containers round them to 1 ms, some to a packet."""

_LOUDEST = 32.0
"""The largest plausible sample (30 dB above full scale): codecs overshoot less, 16-bit values as floats far more."""

_CANCELLED = 0.05
"""Largest power of a mix that gets a warning, as a share of the mean power of the channels."""

_FASTEST_HZ = 768_000
"""The highest rate that recorders use. With a higher one, `max_duration_s` would not limit the number of samples."""

_SILENCE = 1e-8
"""Power of -80 dB; in quieter sound, noise determines how the channels correlate."""


class Mixdown:
    """Collects a sound block by block, as the mean of its channels.

    Args:
        path: The file, for messages.
        rate_hz: Sample rate of all blocks.
        settings: The limit on the duration.

    Raises:
        MediaError: `rate_hz` is 0 or implausibly high.

    Attributes:
        peak: The largest absolute sample of any channel; NaN if one is NaN.
    """

    def __init__(self, path: Path, rate_hz: int, settings: MediaSettings) -> None:
        if not 0 < rate_hz <= _FASTEST_HZ:
            raise MediaError(f"{path}: its sound has {rate_hz} samples per second, over {_FASTEST_HZ}; resample it")
        self.rate_hz = rate_hz
        self.peak = 0.0
        self._path = path
        self._settings = settings
        self._mono = bytearray()
        self._size = 0
        self._mixed_energy = 0.0
        self._energy = 0.0

    def append(self, block: np.ndarray) -> None:
        """Adds a block, float32 [channels, L], at the end of the last one.

        Raises:
            MediaError: The sound is too long.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # `check_waveform` refuses values that are not finite
            mono = block.mean(axis=0, dtype=np.float32)
            self.peak = float(np.maximum(self.peak, np.abs(block).max(initial=0.0)))
            self._mixed_energy += float(np.square(mono, dtype=np.float64).sum())
            self._energy += float(np.square(block, dtype=np.float64).mean(axis=0).sum())
        self._add(mono)

    def place(self, block: np.ndarray, start_s: float) -> None:
        """Adds a block at its time: a gap before it becomes silence, and an overlap with earlier blocks is dropped.

        Raises:
            MediaError: The sound is too long, or its clock jumps back.
        """
        check_order(self._path, self._size / self.rate_hz, start_s)
        ahead = round(start_s * self.rate_hz) - self._size
        if abs(ahead) <= _JITTER_S * self.rate_hz and self._size:
            ahead = 0
        if ahead > 0:
            self._check_duration(self._size + ahead)
            self._add(np.zeros(ahead, dtype=np.float32))
        kept = block[:, max(0, -ahead) :]
        if kept.shape[1]:
            self.append(kept)

    def waveform(self) -> np.ndarray:
        """The whole mix, float32 [L]."""
        return np.frombuffer(self._mono, dtype=np.float32)

    def cancellation(self) -> tuple[str, ...]:
        """A warning if the channels cancel in the mix, as they do if one of them has reversed polarity."""
        if self._energy <= _SILENCE * self._size or self._mixed_energy > _CANCELLED * self._energy:
            return ()
        return (
            f"{self._path}: its channels cancel in the mix to mono, as if one had reversed polarity; "
            "invert that channel",
        )

    def _add(self, mono: np.ndarray) -> None:
        self._check_duration(self._size + len(mono))
        self._mono += mono.data  # a bytearray grows in place; a list of blocks would be copied in the end
        self._size += len(mono)

    def _check_duration(self, size: int) -> None:
        limit = self._settings.max_duration_s
        if size > limit * self.rate_hz:
            raise MediaError(f"{self._path}: its sound exceeds media.max_duration_s {limit:g}; cut the clip")


def check_waveform(path: Path, samples: np.ndarray, rate_hz: int, peak: float) -> None:
    """Checks that samples are plausible.

    Raises:
        MediaError: A sample is not finite, or far above full scale.
    """
    wrong = np.flatnonzero(~np.isfinite(samples))
    if len(wrong):
        raise MediaError(
            f"{path}: its sound holds NaN or infinity ({len(wrong)} of {len(samples)} samples, the first at "
            f"{wrong[0] / rate_hz:.2f} s); write the sound anew from its source"
        )
    if not peak <= _LOUDEST:
        raise MediaError(
            f"{path}: its sound reaches {peak:g} where full scale is 1, as if whole numbers were stored as floating "
            "point; divide the samples by their full scale (32768 for 16 bits) and save it anew"
        )
