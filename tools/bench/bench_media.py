r"""Times how clips are read: decoders side by side, and the cache, by frames, lengths and workers.

    python tools/bench/bench_media.py
    python tools/bench/bench_media.py --peers DIR    # beside qwen-vl-utils and qwen-omni-utils, installed in DIR

Clips have 640 x 360 pixels, 25 frames a second and sound. Each row is the median of rounds in which all its columns
take their turn on the same clip, so that a busy machine slows all of them. `decoded` is our reader of picture and sound
with the keys of qwen-vl-utils, up to arrays of the model's size; `whole` is the same where all frames are decoded and
not only what the chosen ones need; `cached` is what later passes read: the encoded clip
from the media cache. Peers get the same file, number of frames and bound of pixels; qwen-vl-utils reads no sound. A
second table has clips a second for 0, 1 and 2 decode workers. This makes DIR:

    uv pip install --target DIR --no-deps qwen-vl-utils==0.0.14 qwen-omni-utils==0.0.9 librosa audioread lazy_loader \
        soxr pooch msgpack decorator joblib scikit-learn numba llvmlite platformdirs threadpoolctl
"""

import argparse
import os
import shutil
import statistics
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

import numpy as np
from bench_report import machine

from lightning_mmrl.data.media import video
from lightning_mmrl.data.media.cache import MediaCache
from lightning_mmrl.data.media.guard import DecodeTask, GuardedDecoder, decode
from lightning_mmrl.data.pipeline import MediaPipeline
from lightning_mmrl.data.synthetic.video_file import write_clip
from lightning_mmrl.models.families.qwen2_5_omni import OmniEncoder
from lightning_mmrl.models.tiny import build_tiny_omni
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef

WIDTH, HEIGHT, FPS, RATE_HZ, PIXELS = 640, 360, 25, 16_000, 100_352
FRAMES, SECONDS, WORKERS = (8, 16, 32), (2, 10, 60), (0, 1, 2)
REFS = (MediaRef(kind="video", path="clip.mp4"), MediaRef(kind="audio", path="clip.mp4"))
Reading = Callable[[Path, int], object]


def main() -> None:
    """Prints both tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder with the packages of the peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--processor",
        action="store_true",
        help="times on processors, of all threads, which a busy machine does not change",
    )
    parser.add_argument("--clips", type=int, default=24, help="clips for the table of workers")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    clock = time.process_time if options.processor else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        built = build_tiny_omni(work / "model", text=["a clip"], max_audio_s=2 * max(SECONDS))
        encoder = OmniEncoder.from_checkpoint(built)
        pipeline = MediaPipeline(
            encoder=encoder,
            settings=MediaSettings(),
            cache=MediaCache(work / "cache"),
            decoder=GuardedDecoder(workers=0),
        )
        clips = {seconds: _clip(work / f"{seconds}.mp4", seconds) for seconds in SECONDS}
        readings: dict[str, Reading] = {"decoded": lambda path, num: _decoded(pipeline, path, num)}
        readings["whole"] = lambda path, num: _whole(pipeline, path, num)
        readings["cached"] = lambda path, num: _cached(pipeline, path, num)
        if options.peers is not None:
            sys.path.insert(0, str(options.peers))
            readings |= {"qwen-vl-utils": _qwen_vl, "qwen-omni-utils": _qwen_omni}
        print(f"{machine()}\n\n| s | frames | {' | '.join(f'{name}, ms' for name in readings)} |")
        print("|---" * (len(readings) + 2) + "|")
        for seconds, path in clips.items():
            for num in FRAMES:
                found = _timed(readings, path, num, options.rounds, clock)
                cells = " | ".join(f"{1000 * value:.1f} ({value / found['decoded']:.2f})" for value in found.values())
                print(f"| {seconds} | {num} | {cells} |", flush=True)
        print("\n| workers | clips a second | over 0 |\n|---|---|---|")
        rates = {workers: _rate(clips[SECONDS[1]], work, workers, options.clips) for workers in WORKERS}
        for workers, rate in rates.items():
            print(f"| {workers} | {rate:.1f} | {rate / rates[0]:.2f} |")


def _clip(path: Path, seconds: int) -> Path:
    """A clip of soft moving bands with grain, and a tone."""
    random = np.random.default_rng(seconds)
    grain = random.integers(-4, 5, (HEIGHT, WIDTH, 1), dtype=np.int16)
    rows = np.arange(HEIGHT)[:, None, None] / 60
    columns = np.arange(WIDTH)[None, :, None] / 90
    tints = np.arange(3) / 2
    frames = np.empty((FPS * seconds, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for index in range(len(frames)):
        scene = 120 + 80 * np.sin(rows + columns + tints + index / FPS)
        frames[index] = scene.astype(np.int16) + np.roll(grain, index * 37, axis=1)
    times = np.arange(seconds * RATE_HZ) / RATE_HZ
    write_clip(path, frames, FPS, (0.3 * np.sin(2 * np.pi * 220 * times)).astype(np.float32), RATE_HZ)
    return path


def _settings(num: int) -> MediaSettings:
    return MediaSettings(num_frames=num, frame_rule="qwen_vl_utils", max_frame_pixels=PIXELS)


def _tasks(pipeline: MediaPipeline, path: Path, num: int) -> list[DecodeTask]:
    own = pipeline.encoder.own_sizes
    return [DecodeTask(path=path, ref=ref, settings=_settings(num), own=own) for ref in REFS]


def _decoded(pipeline: MediaPipeline, path: Path, num: int) -> object:
    return [decode(task) for task in _tasks(pipeline, path, num)]


def _whole(pipeline: MediaPipeline, path: Path, num: int) -> object:
    with mock.patch.object(video, "plan_runs", return_value=None):
        return _decoded(pipeline, path, num)


def _cached(pipeline: MediaPipeline, path: Path, num: int) -> object:
    found = []
    for task in _tasks(pipeline, path, num):
        key = f"{path.stem}{num}{task.ref.kind}".encode().hex().rjust(64, "0")
        if (entry := pipeline.cache.get(key)) is None:
            pipeline.cache.put(key, pipeline.encode(decode(task)))
            entry = pipeline.cache.get(key)
        found.append(entry)
    return found


def _qwen_vl(path: Path, num: int) -> object:
    from qwen_vl_utils import fetch_video  # type: ignore[import-not-found]  # installed by hand, see above

    return fetch_video({"video": str(path), "nframes": num, "max_pixels": PIXELS})


def _qwen_omni(path: Path, num: int) -> object:
    from qwen_omni_utils import process_mm_info  # type: ignore[import-not-found]  # installed by hand, see above

    content = [{"type": "video", "video": str(path), "nframes": num, "max_pixels": PIXELS}]
    return process_mm_info([{"role": "user", "content": content}], use_audio_in_video=True)


def _timed(
    readings: Mapping[str, Reading], path: Path, num: int, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of each; the first round warms up and does not count."""
    found: dict[str, list[float]] = {name: [] for name in readings}
    for number in range(rounds + 1):
        for name, read in readings.items():
            start = clock()
            read(path, num)
            if number:
                found[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in found.items()}


def _rate(clip: Path, work: Path, workers: int, num_clips: int) -> float:
    """Clips decoded a second, once the workers have started."""
    tasks = []
    for number in range(num_clips):
        path = work / f"copy{number}.mp4"
        if not path.exists():
            shutil.copyfile(clip, path)
            with path.open("ab") as file:
                file.write(struct.pack(">I4sQ", 16, b"free", number))
        tasks.append(DecodeTask(path=path, ref=REFS[0], settings=_settings(16)))
    with GuardedDecoder(workers=workers).session() as session:
        session.decode_all(tasks[: max(1, workers)], lambda index, outcome: None)
        start = time.perf_counter()
        session.decode_all(tasks, lambda index, outcome: None)
        return num_clips / (time.perf_counter() - start)


if __name__ == "__main__":
    os.environ.setdefault("FORCE_QWENVL_VIDEO_READER", "decord")
    main()
