"""Measures how training waits for its media: many clips, several passes, a bounded cache.

    python tools/bench/stream_bench.py make DIR                 # 15,000 clips of 5 s at 640 x 360, from 300 encodings
    python tools/bench/stream_bench.py first-step DIR           # seconds from the command to its first step
    python tools/bench/stream_bench.py passes DIR               # three passes over 1,500 clips: waiting, memory, disk

`make` encodes 300 clips with sound, and makes the others unique by a box of padding, which decoders skip: their content
hash differs, so each is decoded and cached by itself. It continues where it was stopped. The other two train
`experiment=own_clips` in a new run folder below DIR; each prints one JSON object.
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from lightning_mmrl.data.synthetic.video_file import write_clip

LABELS = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
WIDTH, HEIGHT, FPS, SECONDS, RATE_HZ = 640, 360, 25, 5, 16_000
GIB = 2**30


def main() -> int:
    """Runs a subcommand and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "first-step", "passes"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, help="default: 15000, for `passes` 1500")
    parser.add_argument("--encodings", type=int, default=300)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--overrides", nargs="*", default=[], help="more overrides of `mmrl train`")
    options = parser.parse_args()
    if options.what == "make":
        make(options.folder, options.clips or 15_000, options.encodings)
        return 0
    num = options.clips or (15_000 if options.what == "first-step" else 1_500)
    steps = 2 if options.what == "first-step" else options.passes * num // options.batch_size
    found = train(options.folder, num, steps, options.batch_size, options.overrides)
    if options.what == "passes":
        found |= waiting(Path(found["run"]), steps // options.passes)
    print(json.dumps(found, indent=2))
    return 0


def make(folder: Path, num_clips: int, num_encodings: int) -> None:
    """Writes the clips and their manifests."""
    media = folder / "media"
    media.mkdir(parents=True, exist_ok=True)
    for number in range(num_clips):
        path = media / f"{number:05d}.mp4"
        if path.exists():
            continue
        part = path.with_suffix(".part")
        if number < num_encodings:
            write_clip(part, *_content(number))
        else:
            shutil.copyfile(media / f"{number % num_encodings:05d}.mp4", part)
            with part.open("ab") as file:  # a `free` box: its size, its name, and any content
                file.write(struct.pack(">I4sQ", 16, b"free", number))
        os.replace(part, path)
        if number < num_encodings or number % 1000 == 0:
            print(f"\rclip {number + 1} of {num_clips}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    lines = [_line(number) for number in range(num_clips)]
    for name, rows in (("train", lines), ("validation", lines[:8]), ("test", lines[:8])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "labels.json").write_text(json.dumps({"labels": LABELS}) + "\n", encoding="utf-8")


def _content(seed: int) -> tuple[np.ndarray, int, np.ndarray, int]:
    """A scene of moving soft blobs with grain, about as hard to encode as a face before a wall, and a wavering tone."""
    random = np.random.default_rng(seed)
    height, width = np.mgrid[0:HEIGHT:8, 0:WIDTH:8]
    frames = np.empty((FPS * SECONDS, HEIGHT, WIDTH, 3), dtype=np.uint8)
    centers, speeds = random.uniform(0, 1, (6, 2)), random.uniform(-0.3, 0.3, (6, 2))
    colors, radii = random.uniform(-90, 90, (6, 3)), random.uniform(25, 120, 6)
    grain = random.integers(-4, 5, (HEIGHT, WIDTH, 1), dtype=np.int16)
    for index in range(len(frames)):
        scene = np.full((HEIGHT // 8, WIDTH // 8, 3), 120.0)
        for center, speed, color, radius in zip(centers, speeds, colors, radii, strict=True):
            y, x = ((center + speed * index / FPS) % 1) * (HEIGHT, WIDTH)
            scene += np.exp(-((height - y) ** 2 + (width - x) ** 2) / radius**2)[..., None] * color
        small = scene.clip(10, 245).astype(np.int16)
        frames[index] = small.repeat(8, 0).repeat(8, 1) + np.roll(grain, index * 37, axis=1)
    times = np.arange(SECONDS * RATE_HZ) / RATE_HZ
    pitch = random.uniform(100, 300) * (1 + 0.1 * np.sin(2 * np.pi * random.uniform(0.5, 3) * times))
    sound = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE_HZ) + random.normal(0, 0.01, len(times))
    return frames, FPS, sound.astype(np.float32), RATE_HZ


def _line(number: int) -> dict[str, object]:
    label, clip = LABELS[number % len(LABELS)], f"media/{number:05d}.mp4"
    answer = f"<think>a face and a voice</think><answer>{label}</answer>"
    turns = [
        {"role": "user", "content": "<video><audio>Which emotion?"},
        {"role": "assistant", "content": answer},
    ]
    row = {"id": f"clip{number:05d}", "messages": turns, "videos": [clip], "audios": [clip]}
    return row | {"solution": label, "speaker": f"s{number % 50}"}


def train(folder: Path, num: int, steps: int, batch_size: int, overrides: list[str]) -> dict[str, object]:
    """Trains and returns when the first step was done, with memory of the run and disk of its cache."""
    work = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
    command = [sys.executable, "-m", "lightning_mmrl.cli.main", "train", "experiment=own_clips", f"data.root={folder}"]
    stage = {"num_steps": steps, "data.batch_size": batch_size, "data.limit": num, "validate_every": "null"}
    keys = [f"stages.cold_start.{key}={value}" for key, value in stage.items()]
    keys += ["stages.cold_start.data.manifest=train.jsonl", "order=[cold_start]", "tracking=none", "run_name=run"]
    keys += ["evaluation.limit=2", "evaluation.ablations=[]", f"output_dir={work}", "data.validation=null"]
    start, first = time.monotonic(), None
    log = (work / "log").open("w")
    process = subprocess.Popen([*command, *keys, *overrides], stderr=log, stdout=log)
    metrics = work / "run" / "stages" / "00-cold_start" / "metrics.jsonl"
    memory: list[float] = []
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        if first is None and metrics.exists() and metrics.stat().st_size:
            first = time.monotonic() - start
        with suppress(psutil.NoSuchProcess):
            memory.append(_resident(watched) / GIB)
        time.sleep(0.5)
    seconds, peak = time.monotonic() - start, max(memory, default=0)
    if process.returncode:
        sys.exit(f"mmrl train ended with {process.returncode}; see {work / 'log'}")
    cached = sum(path.stat().st_size for path in (work / "cache").rglob("*") if path.is_file())
    third = len(memory) // 3
    return {
        "run": str(work),
        "clips": num,
        "steps": steps,
        "first_step_s": first and round(first, 1),
        "seconds": round(seconds, 1),
        "peak_gib": round(peak, 2),
        "mean_gib_by_third": [
            round(float(np.mean(memory[at : at + third])), 2) for at in range(0, 3 * third, max(third, 1))
        ],
        "cache_gib": round(cached / GIB, 3),
        "cache_bytes_per_clip": cached // max(1, min(num, steps * batch_size)),
    }


def waiting(work: Path, steps_per_pass: int) -> dict[str, object]:
    """The share of each pass that the steps waited for their batches."""
    path = work / "run" / "stages" / "00-cold_start" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    waits = {row["step"]: row["metrics"] for row in rows}
    found = {}
    for number in range(len(waits) // steps_per_pass):
        own = [waits[step] for step in sorted(waits)[number * steps_per_pass : (number + 1) * steps_per_pass]]
        seconds = [next((value for key, value in each.items() if key.endswith("time/data_s")), 0.0) for each in own]
        times = [row["time"] for row in rows if number * steps_per_pass < row["step"] <= (number + 1) * steps_per_pass]
        lasted = max(times) - min(times)
        found[f"pass {number + 1}"] = {
            "seconds": round(lasted, 1),
            "waited_s": round(sum(seconds), 1),
            "share": round(sum(seconds) / lasted, 3),
            "longest_s": round(max(seconds), 2),
        }
    return {"waiting": found}


def _resident(process: psutil.Process) -> int:
    """Bytes of memory of a process and its workers, each shared page in one of them."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += each.memory_full_info().pss
    return total


if __name__ == "__main__":
    sys.exit(main())
