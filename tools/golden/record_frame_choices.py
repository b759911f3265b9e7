"""Writes down which frames and sizes qwen-vl-utils and qwen-omni-utils choose, for tests/oracles/test_frame_choices.py.

    pip download --no-deps qwen-vl-utils==0.0.14 qwen-omni-utils==0.0.9
    python tools/golden/record_frame_choices.py qwen_vl_utils-*.whl qwen_omni_utils-*.whl

The packages' own functions run: `smart_resize`, `fetch_image`, and `fetch_video` on clips that decord would read. Clips
of any size are told by their number of frames, their rate and their size alone; a few are real files. A case that the
packages do not agree on ends the command. What they refuse is written down as null.
"""

import argparse
import hashlib
import importlib.util
import json
import random
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "helpers"))

import clips

RECORDED = Path(__file__).parents[2] / "tests" / "oracles" / "frame_choices.json"
SIZES = [
    (720, 1280),
    (1080, 1920),
    (64, 64),
    (2, 3),
    (481, 641),
    (30, 5999),
    (30, 6001),
    (1, 200),
    (5000, 28),
    (3, 700),
]
BOUNDS = [(3136, 200_000), (784, 784), (4 * 784, 16_384 * 784), (100_352, 602_112), (50_000, 51_000), (2, 1000), (9, 8)]
RATES = [25.0, 30.0, 30_000 / 1001, 24_000 / 1001, 15.0, 10.0, 8.5, 60.0]
FILES = {
    "even": [0.25 * index for index in range(24)],
    "uneven": [0.0, 0.1, 0.2, 0.3, 1.0, 1.5, 2.0, 2.1, 2.2, 4.0, 4.1, 4.2],
    "cut": [0.04 * index for index in range(24)],
    "three": [0.0, 0.5, 1.0],
    "one": [0.0],
}
"""Starts of the frames of real files."""


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs=2, type=Path, metavar="WHEEL", help="qwen-vl-utils, then qwen-omni-utils")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        packages = [loaded(wheel, Path(folder)) for wheel in options.wheels]
        found = {
            "versions": [wheel.name.split("-")[:2] for wheel in options.wheels],
            "sizes": [agreed(packages, size, case) for case in size_cases()],
            "pictures": [agreed(packages, picture, case) for case in picture_cases()],
            "clips": [agreed(packages, clip, case) for case in clip_cases()],
            "files": [agreed(packages, file, case) for case in file_cases()],
        }
    rows = ",\n".join(f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in found.items())
    RECORDED.write_text("{\n" + rows + "\n}\n", encoding="ascii")
    print(RECORDED, {name: len(rows) for name, rows in found.items()})


def loaded(wheel: Path, folder: Path) -> ModuleType:
    """The module `vision_process` of a wheel; the rest of qwen-omni-utils needs librosa."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("vision_process.py")]
        path = Path(archive.extract(name, folder))
    spec = importlib.util.spec_from_file_location(f"vision_process_of_{wheel.name.split('-')[0]}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def agreed(packages: Sequence[ModuleType], choose: Any, case: Mapping[str, Any]) -> dict[str, Any]:
    """A case with what both packages choose; null if they refuse it."""
    found = []
    for package in packages:
        try:
            found.append(choose(package, case))
        except (ValueError, AssertionError) as error:
            print(f"{choose.__name__} {case}: {error}", file=sys.stderr)
            found.append(None)
    if found[0] != found[1]:
        raise SystemExit(f"the packages disagree on {case}: {found}")
    return {**case, "found": found[0]}


def size_cases() -> Iterator[dict[str, Any]]:
    """Odd sizes, extreme proportions, and bounds that fit, bind or contradict each other."""
    rng = random.Random(0)
    for height, width in SIZES:
        for least, most in BOUNDS:
            yield {"size": [height, width], "factor": 28, "bounds": [least, most]}
    for _ in range(150):
        least = rng.choice([784, 3136, 10_000, 100_352])
        size = [round(2 ** rng.uniform(0, 12)), round(2 ** rng.uniform(0, 12))]
        yield {"size": size, "factor": rng.choice([28, 32]), "bounds": [least, round(least * 2 ** rng.uniform(0, 8))]}


def size(package: ModuleType, case: Mapping[str, Any]) -> list[int]:
    """What `smart_resize` chooses; it returns sides of 0 pixels too."""
    return list(package.smart_resize(*case["size"], case["factor"], *case["bounds"]))


def picture_cases() -> Iterator[dict[str, Any]]:
    """Pictures of noise."""
    for seed, (height, width) in enumerate([(48, 64), (33, 90), (120, 41)]):
        yield {"seed": seed, "size": [height, width], "bounds": [3136, 12_544]}


def picture(package: ModuleType, case: Mapping[str, Any]) -> dict[str, Any]:
    """Size and pixels of what `fetch_image` makes of a picture."""
    pixels = np.random.default_rng(case["seed"]).integers(0, 256, (*case["size"], 3), dtype=np.uint8)
    least, most = case["bounds"]
    shown = package.fetch_image({"image": Image.fromarray(pixels), "min_pixels": least, "max_pixels": most})
    return {"size": [shown.height, shown.width], "sha256": hashlib.sha256(shown.tobytes()).hexdigest()}


def clip_cases() -> Iterator[dict[str, Any]]:
    """Clips of one frame to half an hour, by rate or by number, whole and cut, with all bounds."""
    rng = random.Random(1)
    for total in (1, 2, 3, 4, 5, 7, 8, 9, 100):
        for keys in ({"fps": 2.0}, {"nframes": 8}, {"fps": 1.0, "min_frames": 3, "max_frames": 7}):
            yield {"frames": total, "rate": 30.0, "size": [360, 640], "patch": 14, "keys": keys}
    for _ in range(300):
        keys: dict[str, Any] = {"nframes": rng.randint(2, 40)}
        if rng.random() < 0.7:
            keys = {"fps": rng.choice([0.5, 1.0, 2.0, 3.0, 24.0])}
            keys |= {"min_frames": rng.randint(2, 9)} if rng.random() < 0.3 else {}
            keys |= {"max_frames": rng.randint(10, 400)} if rng.random() < 0.3 else {}
        keys |= {"min_pixels": rng.choice([784, 3136, 50_176])} if rng.random() < 0.7 else {}
        keys |= {"max_pixels": rng.choice([100_352, 200_704, 401_408])} if rng.random() < 0.5 else {}
        keys |= {"total_pixels": rng.choice([400_000, 3_000_000, 20_000_000])} if rng.random() < 0.5 else {}
        rate, seconds = rng.choice(RATES), 2 ** rng.uniform(-2, 10.8)
        if rng.random() < 0.3:  # between two frames, where rounding decides nothing
            keys["video_start"] = (int(rng.uniform(0, 0.6 * seconds) * rate) + 0.5) / rate
            keys["video_end"] = keys["video_start"] + (int(rng.uniform(0.1, 1.0) * seconds * rate) + 0.25) / rate
        size = rng.choice([*SIZES[:3], (481, 641), (1920, 1080), (240, 3000)])
        frames = max(1, round(seconds * rate))
        yield {"frames": frames, "rate": rate, "size": list(size), "patch": rng.choice([14, 16]), "keys": keys}


def clip(package: ModuleType, case: Mapping[str, Any]) -> dict[str, Any]:
    """What `fetch_video` chooses of a clip that exists as numbers alone: its tensors have shapes and no content."""
    height, width = case["size"]
    shown: list[list[int]] = []

    def resize(video: torch.Tensor, size: list[int], **_: Any) -> torch.Tensor:
        shown.append(size)
        return video

    class Reader:
        def __init__(self, path: str) -> None:
            self.get_avg_fps = lambda: case["rate"]

        def __len__(self) -> int:
            return case["frames"]

        def get_batch(self, chosen: Sequence[int]) -> Any:
            return SimpleNamespace(asnumpy=lambda: np.broadcast_to(0, (len(chosen), height, width, 3)))

    shapes = SimpleNamespace(tensor=lambda array: torch.empty(array.shape, device="meta"), linspace=torch.linspace)
    functional = SimpleNamespace(functional=SimpleNamespace(resize=resize))
    readers = {"decord": package._read_video_decord, "torchvision": refuse}
    with (
        mock.patch.dict(sys.modules, {"decord": SimpleNamespace(VideoReader=Reader)}),
        mock.patch.multiple(package, torch=shapes, transforms=functional, VIDEO_READER_BACKENDS=readers),
        mock.patch.object(package, "get_video_reader_backend", return_value="decord"),
    ):
        asked = {"video": "clip.mp4", **case["keys"]}
        (_, metadata), rate = package.fetch_video(asked, case["patch"], True, True)
    return {"indices": shortened(metadata["frames_indices"]), "size": shown[0], "sampled_fps": rate}


def shortened(indices: Sequence[int]) -> Any:
    """Indices as they are up to 24, else their number and a hash."""
    if len(indices) <= 24:
        return list(indices)
    return [len(indices), hashlib.sha256(json.dumps(list(indices)).encode()).hexdigest()]


def refuse(_: object) -> None:
    """Stands for torchvision's reader, which the packages try next and which torchvision no longer has."""
    raise ValueError("refused by the reader before")


def file_cases() -> Iterator[dict[str, Any]]:
    """Real files, whole and cut."""
    for name, starts in FILES.items():
        for keys in (
            {"fps": 2.0},
            {"nframes": 6},
            {"fps": 2.0, "max_frames": 4, "max_pixels": 7000, "min_pixels": 784},
        ):
            yield {"name": name, "starts_s": starts, "keys": keys}
    for name, start, end in (("cut", 0.21, 0.73), ("even", 1.1, 4.6)):
        keys = {"fps": 10.0 if name == "cut" else 2.0, "video_start": start, "video_end": end}
        yield {"name": name, "starts_s": FILES[name], "keys": keys}


def file(package: ModuleType, case: Mapping[str, Any]) -> dict[str, Any]:
    """What `fetch_video` chooses of a file that decord reads."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(package.VIDEO_READER_BACKENDS, torchvision=refuse):
        path = clips.write_grey(Path(folder) / "clip.mp4", case["starts_s"], options={"bf": "0"})
        (video, metadata), rate = package.fetch_video({"video": str(path), **case["keys"]}, 14, True, True)
    indices = [int(index) for index in metadata["frames_indices"]]
    return {"indices": indices, "size": list(video.shape[2:]), "sampled_fps": rate, "rate": metadata["fps"]}


if __name__ == "__main__":
    main()
