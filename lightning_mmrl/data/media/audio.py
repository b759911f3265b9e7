"""Reads sound as a mono waveform on the file's clock, with soundfile or else PyAV, and resamples it with soxr."""

from contextlib import suppress

import av
import numpy as np
import soundfile
import soxr
from av.container import InputContainer
from av.error import FFmpegError

from lightning_mmrl.data.media.containers import open_container
from lightning_mmrl.data.media.declared_size import whole_s
from lightning_mmrl.data.media.mixdown import Mixdown, check_waveform
from lightning_mmrl.data.media.opened import MediaFile, of_path
from lightning_mmrl.data.media.selection import beyond_the_end
from lightning_mmrl.data.media.tracks import Pass, Tracks, find_tracks, shortfall
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import SAMPLE_RATE_HZ, DecodedAudio
from lightning_mmrl.types.records import MediaRef

_SOUNDFILE_FORMATS = frozenset({"wav", "w64", "flac", "aiff", "caf", "au", "mp3", "ogg"})
"""FFmpeg's names of the containers that soundfile reads exactly, as tools/truth/frame_truth.py proves."""

_BLOCK = 16_384


def read_audio(file: MediaFile, ref: MediaRef, settings: MediaSettings) -> DecodedAudio:
    """Reads the waveform of the span, mixed to mono, at `SAMPLE_RATE_HZ`.

    Time counts from the container's zero, see tracks.py. Gaps, and the time before a track that starts later, are
    filled with silence. In a plain sound file, time counts from the first sample.

    Raises:
        MediaError: The file cannot be decoded, has no sound, is too long, its span is empty, or its samples are
            implausible: not finite, or whole numbers stored as floating point.
    """
    path = file.path
    mix, promised_s = _read(file, settings)
    samples, rate = mix.waveform(), mix.rate_hz
    if not len(samples):
        raise MediaError(f"{path}: the sound holds no samples; re-encode or remove the clip")
    duration_s = len(samples) / rate
    check_waveform(path, samples, rate, mix.peak)
    start = round((ref.start_s or 0.0) * rate)
    stop = len(samples) if ref.end_s is None else min(len(samples), round(ref.end_s * rate))
    if stop <= start:
        raise MediaError(
            f"{path}: span {ref.start_s}..{ref.end_s} s is empty in {duration_s:.2f} s of sound; fix start/end"
        )
    samples = samples[start:stop]
    if rate != SAMPLE_RATE_HZ:
        samples = soxr.resample(samples, rate, SAMPLE_RATE_HZ)
    return DecodedAudio(
        waveform=np.ascontiguousarray(samples, dtype=np.float32),
        sample_rate_hz=SAMPLE_RATE_HZ,
        warnings=(
            *mix.cancellation(),
            *beyond_the_end(path, ref, duration_s),
            *shortfall(path, promised_s, duration_s),
        ),
    )


decode_audio = of_path(read_audio)


def _read(file: MediaFile, settings: MediaSettings) -> tuple[Mixdown, float]:
    """Returns the sound of a file, and the duration that the sound should have."""
    path = file.path
    with open_container(file, settings, "sound") as container:
        tracks = find_tracks(file, container)
        if tracks.sound is None:
            raise MediaError(f"{path}: no audio track; remove the <audio> tag or name a separate sound file")
        try:
            if tracks.format in _SOUNDFILE_FORMATS and tracks.video is None:
                # FFmpeg reads more codecs in these containers; if FFmpeg fails too, its message explains the fault.
                with suppress(soundfile.SoundFileError, RuntimeError):
                    return _read_soundfile(file, settings)
            return _read_track(file, container, tracks, settings)
        except MemoryError:
            raise
        except (FFmpegError, ValueError, OSError) as error:
            raise MediaError(f"{path}: sound cannot be decoded ({error}); re-encode or remove the clip") from error


def _read_soundfile(file: MediaFile, settings: MediaSettings) -> tuple[Mixdown, float]:
    with soundfile.SoundFile(file.reader()) as sound:
        mix = Mixdown(file.path, sound.samplerate, settings)
        # Read in blocks: reading all at once would allocate what the header declares, which may be absurd.
        while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
            mix.append(block.T)
        return mix, whole_s(file, sound.frames / sound.samplerate)


def _read_track(
    file: MediaFile, container: InputContainer, tracks: Tracks, settings: MediaSettings
) -> tuple[Mixdown, float]:
    assert tracks.sound is not None
    reading, mix = Pass(file, container, tracks), None
    for frame in reading.frames(tracks.sound):
        block, rate = _channels(frame), frame.sample_rate
        if mix is None:
            mix = Mixdown(file.path, rate, settings)
        if rate != mix.rate_hz:
            block = soxr.resample(block.T, rate, mix.rate_hz).T
        start_s = reading.time_s(frame, tracks.sound)
        if start_s is None:
            mix.append(block)
        else:
            mix.place(block, start_s)
    if mix is None:
        mix = Mixdown(file.path, tracks.sound.rate, settings)
    return mix, reading.promised_s(tracks.sound)


def _channels(frame: av.AudioFrame) -> np.ndarray:
    """The samples of a frame, float32 [channels, L], with full scale 1."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    full_scale = 1.0 if samples.dtype.kind == "f" else 2.0 ** (8 * samples.dtype.itemsize - 1)
    return samples.astype(np.float32) / full_scale
