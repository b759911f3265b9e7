"""Checks the decoders of this installation: writes a small file of each kind and decodes it as training does."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from lightning_mmrl.data.media.audio import decode_audio
from lightning_mmrl.data.media.image import decode_image
from lightning_mmrl.data.media.video import HAS_DECORD, decode_decord, decode_pyav
from lightning_mmrl.data.synthetic.video_file import write_clip
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import SAMPLE_RATE_HZ, DecodedAudio, DecodedVideo
from lightning_mmrl.types.records import MediaRef

FPS = 10
RATE_HZ = SAMPLE_RATE_HZ
PITCH_HZ = 440
LEVELS = (40, 90, 140, 190)
"""Grey level of each frame of the clip; they differ, so that a lost, repeated or misplaced frame is noticed."""

_SETTINGS = MediaSettings(num_frames=len(LEVELS))
_IMAGE = MediaRef(kind="image", path="selfcheck")
_VIDEO = MediaRef(kind="video", path="selfcheck")
_AUDIO = MediaRef(kind="audio", path="selfcheck")


def check_decord(folder: Path) -> str:
    """Decodes H.264 with decord."""
    if not HAS_DECORD:
        return "not used on this platform; PyAV decodes video"
    _check_video("decord", folder / "decord.mp4", decode_decord)
    return f"decord {version('decord')} decodes H.264"


def check_pyav(folder: Path) -> str:
    """Decodes H.264 and AAC with PyAV, which also writes them."""
    clip = folder / "pyav.mp4"
    _check_video("PyAV", clip, decode_pyav)
    _check_tone("PyAV", decode_audio(clip, _AUDIO, _SETTINGS))
    return f"PyAV {version('av')} writes and decodes H.264 with AAC"


def check_soundfile(folder: Path) -> str:
    """Decodes a wav file with soundfile, and resamples it with soxr."""
    path = folder / "tone.wav"
    soundfile.write(path, _tone(2 * RATE_HZ), 2 * RATE_HZ)
    _check_tone("soundfile", decode_audio(path, _AUDIO, _SETTINGS))
    return f"soundfile {version('soundfile')} decodes wav, soxr {version('soxr')} resamples it"


def check_pillow(folder: Path) -> str:
    """Decodes a png, which is lossless, with Pillow."""
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    path = folder / "picture.png"
    Image.fromarray(pixels).save(path)
    if not np.array_equal(decode_image(path, _IMAGE, _SETTINGS).pixels, pixels):
        raise MediaError("Pillow decodes other pixels than it wrote")
    return f"Pillow {version('pillow')} writes and decodes png"


DECODERS: Mapping[str, Callable[[Path], str]] = {
    "decord": check_decord,
    "av": check_pyav,
    "soundfile": check_soundfile,
    "pillow": check_pillow,
}
"""Maps each package to its check, which returns a sentence about what works."""


def _check_video(name: str, path: Path, decode: Callable[[Path, MediaRef, MediaSettings], DecodedVideo]) -> None:
    """Writes a clip with sound, decodes its pictures, and compares their levels."""
    frames = np.stack([np.full((64, 64, 3), level, dtype=np.uint8) for level in LEVELS])
    write_clip(path, frames, FPS, _tone(RATE_HZ)[: RATE_HZ * len(LEVELS) // FPS], RATE_HZ)
    found = [round(float(frame.mean())) for frame in decode(path, _VIDEO, _SETTINGS).frames]
    if any(abs(level - expected) > 5 for level, expected in zip(found, LEVELS, strict=True)):
        raise MediaError(f"{name} decodes frames of grey {found}, written were {list(LEVELS)}")


def _tone(rate_hz: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * PITCH_HZ * np.arange(rate_hz) / rate_hz)).astype(np.float32)


def _check_tone(name: str, sound: DecodedAudio) -> None:
    spectrum = np.abs(np.fft.rfft(sound.waveform))
    peak = float(np.fft.rfftfreq(len(sound.waveform), 1 / sound.sample_rate_hz)[spectrum.argmax()])
    if abs(peak - PITCH_HZ) > 5:
        raise MediaError(f"{name} decodes a tone of {peak:.0f} Hz, written was one of {PITCH_HZ} Hz")
