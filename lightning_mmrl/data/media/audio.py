"""Sound as a mono waveform: soundfile for audio files, the container's own track for video files, soxr to resample."""

from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
from av.error import FFmpegError

from lightning_mmrl.errors import MediaError
from lightning_mmrl.types.media import DecodedAudio, MediaSettings
from lightning_mmrl.types.records import MediaRef

SOUNDFILE_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"})


def decode_audio(path: Path, ref: MediaRef, settings: MediaSettings) -> DecodedAudio:
    """The waveform of the span, mixed to mono, at `sample_rate_hz`.

    Raises:
        MediaError: The file cannot be decoded, has no sound, is too long, or its span is empty.
    """
    read = _read_soundfile if path.suffix.lower() in SOUNDFILE_SUFFIXES else _read_container
    samples, rate = read(path, settings)
    if not len(samples):
        raise MediaError(f"{path}: the sound holds no samples; re-encode or remove the clip")
    _check_duration(path, len(samples) / rate, settings)
    start = round((ref.start_s or 0.0) * rate)
    stop = len(samples) if ref.end_s is None else min(len(samples), round(ref.end_s * rate))
    if stop <= start:
        raise MediaError(
            f"{path}: span {ref.start_s}..{ref.end_s} s is empty in {len(samples) / rate:.2f} s of sound; fix start/end"
        )
    samples = samples[start:stop]
    if rate != settings.sample_rate_hz:
        samples = soxr.resample(samples, rate, settings.sample_rate_hz)
    return DecodedAudio(
        waveform=np.ascontiguousarray(samples, dtype=np.float32), sample_rate_hz=settings.sample_rate_hz
    )


def _read_soundfile(path: Path, settings: MediaSettings) -> tuple[np.ndarray, int]:
    try:
        with soundfile.SoundFile(path) as file:
            _check_duration(path, file.frames / file.samplerate, settings)
            samples = file.read(dtype="float32", always_2d=True)
            rate = file.samplerate
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise MediaError(f"{path}: sound cannot be decoded ({error}); re-encode or remove the clip") from error
    return samples.mean(axis=1), rate


def _read_container(path: Path, settings: MediaSettings) -> tuple[np.ndarray, int]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise MediaError(f"{path}: no audio track; remove the <audio> tag or name a separate sound file")
            _check_duration(path, float(container.duration or 0) / av.time_base, settings)
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=stream.rate)
            pieces = [
                piece.to_ndarray()[0]
                for frame in [*container.decode(stream), None]
                for piece in resampler.resample(frame)
            ]
            rate = stream.rate
    except (FFmpegError, ValueError, OSError) as error:
        raise MediaError(f"{path}: sound cannot be decoded ({error}); re-encode or remove the clip") from error
    return np.concatenate([np.zeros(0, dtype=np.float32), *pieces]), rate


def _check_duration(path: Path, seconds: float, settings: MediaSettings) -> None:
    if seconds > settings.max_duration_s:
        limit = settings.max_duration_s
        raise MediaError(f"{path}: {seconds:.1f} s of sound exceed media.max_duration_s {limit:g}; cut the clip")
