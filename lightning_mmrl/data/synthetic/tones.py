"""A task about touch tones: each key plays the frequency of its row and the frequency of its column (ITU-T Q.23)."""

import wave
from pathlib import Path

import numpy as np

from lightning_mmrl.data.synthetic.task import Medium, Plan, Problem, Task

SAMPLE_RATE_HZ = 16_000
DURATION_S = 0.6
ROWS_HZ = (697.0, 770.0, 852.0)
COLUMNS_HZ = (1209.0, 1336.0, 1477.0)
LABELS = ("1", "2", "3", "4", "5", "6", "7", "8", "9")
QUESTION = "<audio>Which key?"

_DETUNING = 0.01
_LEVEL = (0.1, 0.3)
_NOISE = (0.01, 0.04)
_LENGTH_S = (0.3, 0.45)
_FADE_S = 0.01


def compose(plan: Plan) -> Problem:
    """Play the tone of the label's key, with hiss; the tone starts at a random time of the clip."""
    rng = plan.generator()
    row, column = divmod(int(plan.label) - 1, 3)
    time_s = np.arange(round(DURATION_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    length_s = rng.uniform(*_LENGTH_S)
    start_s = rng.uniform(0.0, DURATION_S - length_s)
    edge_s = np.minimum(time_s - start_s, start_s + length_s - time_s)
    detuning = 1.0 + rng.uniform(-_DETUNING, _DETUNING)
    tone = sum(
        rng.uniform(*_LEVEL) * np.sin(2 * np.pi * (each * detuning * time_s + rng.uniform()))
        for each in (ROWS_HZ[row], COLUMNS_HZ[column])
    )
    hiss = rng.uniform(*_NOISE) * rng.standard_normal(len(time_s))
    wave = np.clip(tone * np.clip(edge_s / _FADE_S, 0.0, 1.0) + hiss, -1.0, 1.0)
    return Problem(
        question=QUESTION,
        thought=f"row {row + 1} and column {column + 1}",
        facts={"row": row + 1, "column": column + 1},
        signal=wave.astype(np.float32),
    )


def save_wav(path: Path, waveform: np.ndarray) -> None:
    """Write a mono waveform (L,) in -1..1 as 16-bit PCM."""
    # If `wave` opened the file itself and failed, it would report a second error.
    with path.open("wb") as stream, wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(np.round(waveform * 32767).astype("<i2").tobytes())


TONES = Task(
    name="tones",
    labels=LABELS,
    compose=compose,
    medium=Medium(column="audios", suffix=".wav", save=save_wav),
)
"""Touch tones as WAV files; the label is the key."""
