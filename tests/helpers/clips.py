"""Small real media files whose content can be read back: frames of one grey level each, and tones."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

LEVEL_STEP = 10


def write_grey(
    path: Path,
    starts_s: Sequence[float],
    size: int = 64,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
) -> Path:
    """A clip whose frame i is uniformly grey at level `LEVEL_STEP * (i + 1)` and starts at `starts_s[i]`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for index, start_s in enumerate(starts_s):
            image = np.full((size, size, 3), LEVEL_STEP * (index + 1), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(start_s * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def shown(frames: np.ndarray) -> list[int]:
    """Which frames of `write_grey` these are."""
    return [round(float(frame.mean()) / LEVEL_STEP) - 1 for frame in frames]


def tone(frequency_hz: float, duration_s: float, rate_hz: int) -> np.ndarray:
    """A sine [L] float32."""
    return (0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(round(duration_s * rate_hz)) / rate_hz)).astype(
        np.float32
    )


def write_wav(path: Path, samples: np.ndarray, rate_hz: int) -> Path:
    """[L] or [L, channels] as 16-bit PCM."""
    soundfile.write(path, samples, rate_hz)
    return path


def peak_hz(waveform: np.ndarray, rate_hz: int) -> float:
    """The strongest frequency."""
    return float(np.fft.rfftfreq(len(waveform), 1 / rate_hz)[np.abs(np.fft.rfft(waveform)).argmax()])
