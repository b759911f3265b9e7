"""Synthesizes sung syllables: a harmonic voice whose pace, pitch and steadiness show a voice group."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass

import numpy as np

SAMPLE_RATE_HZ = 16_000
DURATION_S = 1.5
NUM_SAMPLES = int(SAMPLE_RATE_HZ * DURATION_S)
_TABLE_SIZE = 2048
_HIGHEST_HARMONIC_HZ = 3800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VoiceStyle:
    """Difficulty and sound of the voices.

    `strength_range` is the share of the full prosody that a clip shows. `rest_spread` (per speaker) and `jitter` (per
    clip) are standard deviations of every prosody parameter, as a share of its full movement. `pitch_ranges_hz` are
    the ranges of a speaker's base pitch, chosen with equal probability. `noise_range` bounds the standard deviation of
    a clip's hiss (full scale 1).
    """

    strength_range: tuple[float, float] = (0.6, 1.0)
    rest_spread: float = 0.1
    jitter: float = 0.1
    noise_range: tuple[float, float] = (0.004, 0.012)
    pitch_ranges_hz: tuple[tuple[float, float], ...] = ((110.0, 260.0),)


OTHER_VOICE_STYLE = VoiceStyle(noise_range=(0.006, 0.018), pitch_ranges_hz=((80.0, 100.0), (280.0, 330.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prosody:
    """Parameters of a voice; the defaults are the voice at rest.

    Loudness and tremolo are amplitudes (full scale 1). Brightness is 0 for a dark and 1 for a bright tone. Swell is
    the growth of the amplitude over the clip.
    """

    syllable_rate_hz: float = 3.5
    loudness: float = 0.30
    intonation_semitones: float = 1.5
    rise_semitones: float = 0.0
    vibrato_semitones: float = 0.15
    tremolo: float = 0.05
    brightness: float = 0.4
    swell: float = 0.0


PROSODIES: Mapping[str, Prosody] = {
    "fast": Prosody(syllable_rate_hz=7.0, loudness=0.6, brightness=1.0),
    "shaky": Prosody(loudness=0.14, vibrato_semitones=2.0, tremolo=0.7, brightness=0.5),
    "flat": Prosody(syllable_rate_hz=2.0, intonation_semitones=0.0, brightness=0.0),
    "rising": Prosody(rise_semitones=12.0, swell=1.5),
}
_REST = np.array(astuple(Prosody()))
_FULL_MOVEMENT = np.array([2.5, 0.2, 1.5, 6.0, 0.8, 0.4, 0.5, 0.7])
_LOWEST = np.array([1.2, 0.08, 0.0, -20.0, 0.0, 0.0, 0.0, -1.0])
_HIGHEST = np.array([9.0, 0.8, 6.0, 20.0, 4.0, 0.9, 1.0, 1.8])


@dataclass(frozen=True, slots=True, kw_only=True)
class VoiceIdentity:
    """Features that all clips of one speaker share: base pitch, timbre (bright and dark period), resting prosody."""

    base_pitch_hz: float
    bright_period: np.ndarray
    dark_period: np.ndarray
    rest: np.ndarray


def draw_identity(style: VoiceStyle, rng: np.random.Generator) -> VoiceIdentity:
    """Draw one speaker's voice."""
    lowest_hz, highest_hz = style.pitch_ranges_hz[rng.integers(len(style.pitch_ranges_hz))]
    base_pitch_hz = rng.uniform(lowest_hz, highest_hz)
    harmonics = np.arange(1, int(_HIGHEST_HARMONIC_HZ / base_pitch_hz) + 1)
    formants_hz = rng.uniform([350.0, 1000.0, 2200.0], [800.0, 2000.0, 3200.0])
    distance = (harmonics[:, None] * base_pitch_hz - formants_hz) / rng.uniform(90.0, 180.0)
    formant_gain = 0.15 + (1.0 / (1.0 + distance**2)).sum(axis=1)
    phase = np.exp(2j * np.pi * rng.uniform(size=len(harmonics)))
    tilt = rng.uniform(0.0, 0.4)

    def period(falloff: float) -> np.ndarray:
        spectrum = np.zeros(_TABLE_SIZE // 2 + 1, dtype=np.complex128)
        spectrum[harmonics] = harmonics**-falloff * formant_gain * phase
        wave = np.fft.irfft(spectrum)
        return wave / np.abs(wave).max()

    return VoiceIdentity(
        base_pitch_hz=base_pitch_hz,
        bright_period=period(0.3 + tilt),
        dark_period=period(1.6 + tilt),
        rest=_REST + style.rest_spread * _FULL_MOVEMENT * rng.standard_normal(8),
    )


def render_voice(group: str, identity: VoiceIdentity, style: VoiceStyle, rng: np.random.Generator) -> np.ndarray:
    """Synthesize one clip of a voice group: float32 (NUM_SAMPLES,) in -1..1 at SAMPLE_RATE_HZ, mono."""
    movement = np.array(astuple(PROSODIES[group])) - _REST
    resting = identity.rest + style.jitter * _FULL_MOVEMENT * rng.standard_normal(8)
    prosody = np.clip(resting + rng.uniform(*style.strength_range) * movement, _LOWEST, _HIGHEST)
    rate_hz, loudness, intonation, rise, vibrato, tremolo, brightness, swell = prosody
    time_s = np.arange(NUM_SAMPLES) / SAMPLE_RATE_HZ
    turns = rng.uniform(size=4)
    tremor_hz = rng.uniform(6.0, 9.0)

    semitones = intonation * _sine(rng.uniform(0.7, 1.5), turns[0], time_s)
    semitones += rise * (time_s / DURATION_S - 0.4) + vibrato * _sine(tremor_hz, turns[1], time_s)
    cycles = np.cumsum(identity.base_pitch_hz * np.exp2(semitones / 12.0)) / SAMPLE_RATE_HZ
    period = brightness * identity.bright_period + (1.0 - brightness) * identity.dark_period
    tone = period[(cycles * _TABLE_SIZE).astype(np.int64) % _TABLE_SIZE]

    syllables = 0.12 + 0.88 * (0.5 + 0.5 * _sine(rate_hz, turns[2], time_s)) ** 1.5
    tremor = 1.0 - tremolo * (0.5 + 0.5 * _sine(tremor_hz, turns[3], time_s))
    swelling = 1.0 + swell * (time_s / DURATION_S - 0.5)
    fade = np.minimum(1.0, np.minimum(time_s, DURATION_S - time_s) / 0.03)
    hiss = rng.uniform(*style.noise_range) * rng.standard_normal(NUM_SAMPLES)
    return np.clip(loudness * tone * syllables * tremor * swelling * fade + hiss, -1.0, 1.0).astype(np.float32)


def _sine(frequency_hz: float, turn: float, time_s: np.ndarray) -> np.ndarray:
    """Return a sine of amplitude 1 that starts at the phase `turn`, a share of its period (0..1)."""
    return np.sin(2 * np.pi * (frequency_hz * time_s + turn))
