"""A small set of clips of which one in ten is damaged, for runs that read their clips while they train."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lightning_mmrl.data.synthetic.video_file import write_clip

LABELS = ("happy", "sad", "angry", "neutral")
NUM, EVERY = 40, 10
FPS, SECONDS, SIZE, RATE_HZ = 10, 1, 64, 16_000

DAMAGE: tuple[Callable[[bytes], bytes], ...] = (
    lambda content: content[: len(content) // 2],
    lambda content: random.Random(0).randbytes(len(content)),
    lambda content: b"",
    lambda content: b"not found\n" * 100,
)
"""One after the other: half a download, garbage, nothing, and a message in place of a clip."""


def write_damaged_set(folder: Path, num: int = NUM) -> tuple[str, ...]:
    """Writes clips and manifests, if they are missing; returns the ids of the damaged clips, one in ten."""
    media, numbers = folder / "media", range(num)
    damaged = [number for number in numbers if number % EVERY == EVERY // 2]
    names = tuple(f"clip{number:03d}" for number in damaged)
    if (folder / "labels.json").exists():
        return names
    media.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        write_clip(media / f"{number:03d}.mp4", *_content(number))
    for place, number in enumerate(damaged):
        path = media / f"{number:03d}.mp4"
        path.write_bytes(DAMAGE[place % len(DAMAGE)](path.read_bytes()))
    lines = [_line(number) for number in numbers]
    whole = [line for number, line in enumerate(lines) if number not in damaged]
    for name, rows in (("train", lines), ("validation", whole[:4]), ("test", whole[:4])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "labels.json").write_text(json.dumps({"labels": LABELS}) + "\n")
    return names


def _content(number: int) -> tuple[np.ndarray, int, np.ndarray, int]:
    """A square that moves, of another shade in each clip, and a tone."""
    frames = np.full((FPS * SECONDS, SIZE, SIZE, 3), 20, dtype=np.uint8)
    for index, frame in enumerate(frames):
        frame[8:32, index * 3 : index * 3 + 20] = 60 + 4 * number
    times = np.arange(RATE_HZ * SECONDS) / RATE_HZ
    return frames, FPS, (0.3 * np.sin(2 * np.pi * (200 + 10 * number) * times)).astype(np.float32), RATE_HZ


def _line(number: int) -> dict[str, object]:
    label, clip = LABELS[number % len(LABELS)], f"media/{number:03d}.mp4"
    answer = f"<think>a face and a voice</think><answer>{label}</answer>"
    turns = [{"role": "user", "content": "<video><audio>Which emotion?"}, {"role": "assistant", "content": answer}]
    row = {"id": f"clip{number:03d}", "messages": turns, "videos": [clip], "audios": [clip]}
    return row | {"solution": label, "speaker": f"s{number % 5}"}
