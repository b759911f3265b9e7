"""Small media files of many formats, and ways to damage them; a seed and a number say which file it is."""

import random
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import soundfile
import truth_clips
from PIL import Image
from truth_recipes import RECIPES

from lightning_mmrl.data.synthetic.video_file import write_clip

SECONDS, RATE_HZ = 1.2, 16_000
FILMS = {
    "mp4": "mp4:libx264+aac bf=2 g=25",
    "late.mp4": "mp4:libx264+aac late_sound bf=2 g=25",
    "cut.mp4": "mp4:libx264+aac bf=2 g=25 movflags=frag_keyframe+empty_moov",
    "hevc.mp4": "mp4:libx265+aac g=25 x265-params=log-level=0",
    "mov": "mov:libx264+aac bf=2 g=25",
    "mkv": "mkv:libx264+aac bf=2 g=25",
    "webm": "webm:libvpx-vp9+libopus g=25 cpu-used=8",
    "avi": "avi:mpeg4+libmp3lame bf=2 g=25",
    "ts": "ts:libx264+aac bf=2 g=25",
    "mpg": "mpg:mpeg2video+mp2 bf=2 g=25",
    "flv": "flv:libx264+aac bf=2 g=25",
    "wmv": "wmv:wmv2+wmav2",
}
"""Suffixes to recipes of tools/truth/truth_recipes.py."""

SOUNDS = ("wav", "flac", "mp3", "ogg", "aiff")
STILLS = ("png", "jpeg", "webp", "tiff", "bmp", "avif")
HEIC = Path(__file__).parents[2] / "tests" / "cases" / "stills_and_motion" / "pic.heic"

FIELDS = (0, 1, 2, 255, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
HEAD, TAIL = 600, 4000
"""Where headers lie: the first bytes of a file, and the last ones of an MP4 file."""


def write_bases(folder: Path) -> dict[str, Path]:
    """Writes the undamaged files that are missing, each under the name of its format."""
    folder.mkdir(parents=True, exist_ok=True)
    recipes = {recipe.name: recipe for recipe in RECIPES}
    bases = {name: folder / f"base.{name}" for name in (*FILMS, "plain.mp4", *SOUNDS, *STILLS, "gif", "heic")}
    for name, path in bases.items():
        if path.exists():
            continue
        if name in FILMS:
            truth_clips.write_clip(path, recipes[FILMS[name]], SECONDS)
        elif name == "plain.mp4":
            frames = np.stack([truth_clips.draw(number) for number in range(30)])
            write_clip(path, frames, truth_clips.FPS, _tone(), RATE_HZ)
        elif name in SOUNDS:
            soundfile.write(path, _tone(), RATE_HZ)
        elif name == "heic":
            path.write_bytes(HEIC.read_bytes())
        else:
            first, *more = [Image.fromarray(truth_clips.draw(number)) for number in range(1, 5)]
            moving = {"save_all": True, "append_images": more, "duration": 200} if name == "gif" else {}
            first.save(path, **moving)
    return bases


def _tone() -> np.ndarray:
    return (0.3 * np.sin(np.arange(round(SECONDS * RATE_HZ)) * 0.2)).astype(np.float32)


def mutated(contents: Mapping[str, bytes], seed: int, number: int) -> tuple[str, str, bytes]:
    """The name of the format, the names of the mutations, and the content of a file; one in ten is mutated twice."""
    rng = random.Random(f"{seed}/{number}")
    names = sorted(contents)
    name = names[number % len(names)]
    content, done = contents[name], []
    for _ in range(1 if rng.random() < 0.9 else 2):
        kind = rng.choice(sorted(MUTATIONS))
        content = MUTATIONS[kind](rng, content, contents)
        done.append(kind)
    return name, "+".join(done), content


def truncate(rng: random.Random, content: bytes, _: Mapping[str, bytes]) -> bytes:
    """The end is missing, or rarely all."""
    return content[: rng.randrange(len(content) + 1)]


def behead(rng: random.Random, content: bytes, _: Mapping[str, bytes]) -> bytes:
    """The beginning is missing."""
    return content[rng.randrange(1, 200) :]


def flip_bits(rng: random.Random, content: bytes, _: Mapping[str, bytes]) -> bytes:
    """Up to 64 bits are wrong, anywhere."""
    changed = bytearray(content)
    for _number in range(rng.choice((1, 2, 8, 64)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def change_fields(rng: random.Random, content: bytes, _: Mapping[str, bytes]) -> bytes:
    """Some numbers of the headers are extreme, or off by one."""
    changed = bytearray(content)
    for _number in range(rng.randint(1, 3)):
        start, end = rng.choice(((0, HEAD), (len(content) - TAIL, len(content))))
        places = range(max(0, start), min(end, len(content)) - 4)
        if not places:
            break
        at, form = rng.choice(places), rng.choice((">I", "<I", ">H", "<H"))
        most = 0xFFFF if form.endswith("H") else 0xFFFF_FFFF
        old = struct.unpack_from(form, changed, at)[0]
        value = rng.choice((*FIELDS, old + 1, old - 1, 2 * old))
        struct.pack_into(form, changed, at, value & most)
    return bytes(changed)


def swap_heads(rng: random.Random, content: bytes, contents: Mapping[str, bytes]) -> bytes:
    """The head of another file, or another file altogether under this name."""
    other = contents[rng.choice(sorted(contents))]
    at = rng.choice((16, 64, HEAD, len(other)))
    return other[:at] + (content[at:] if at < len(other) else b"")


def zero_run(rng: random.Random, content: bytes, _: Mapping[str, bytes]) -> bytes:
    """A run of zeros, as a download with holes has."""
    at, size = rng.randrange(len(content) + 1), rng.choice((16, 512, 4096))
    return content[:at] + bytes(min(size, len(content) - at)) + content[at + size :]


def garbage_run(rng: random.Random, content: bytes, _: Mapping[str, bytes]) -> bytes:
    """A run of garbage in place of content."""
    at, size = rng.randrange(len(content) + 1), rng.choice((16, 512, 4096))
    return content[:at] + rng.randbytes(min(size, len(content) - at)) + content[at + size :]


def insert(rng: random.Random, content: bytes, _: Mapping[str, bytes]) -> bytes:
    """Garbage or a copy of a part between two bytes."""
    at, size = rng.randrange(len(content) + 1), rng.choice((1, 7, 188, 4096))
    more = rng.choice((rng.randbytes(size), content[at : at + size]))
    return content[:at] + more + content[at:]


def append(rng: random.Random, content: bytes, contents: Mapping[str, bytes]) -> bytes:
    """Garbage, zeros or another file at the end."""
    other = contents[rng.choice(sorted(contents))]
    return content + rng.choice((rng.randbytes(3000), bytes(3000), other, content))


def remove(rng: random.Random, content: bytes, _: Mapping[str, bytes]) -> bytes:
    """A part is missing."""
    at = rng.randrange(len(content) + 1)
    return content[:at] + content[at + rng.choice((1, 7, 188, 4096)) :]


MUTATIONS: Mapping[str, Callable[[random.Random, bytes, Mapping[str, bytes]], bytes]] = {
    function.__name__: function
    for function in (
        *(truncate, behead, flip_bits, change_fields, swap_heads, zero_run, garbage_run, insert, append, remove),
    )
}
