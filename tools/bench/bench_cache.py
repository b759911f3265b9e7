"""Weighs cached clips: bytes on disk of each, beside the float32 tensors that the processor gives.

    python tools/bench/bench_cache.py                 8 clips of 640 x 360 pixels and 5 s with sound
    python tools/bench/bench_cache.py --clips 32 --noise 6

Clips show the drawn faces of the generated set, enlarged, with noise of their own in every pixel, and a voice. They are
written as H.264 and AAC, decoded as training decodes them, 8 frames each, and encoded with the bounds of the released
Qwen2.5-Omni processor. A variant is weighed once; a table in Markdown goes to standard output.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from bench_report import machine
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from lightning_mmrl.data.media.cache import MediaCache
from lightning_mmrl.data.media.cache_folder import stored_files
from lightning_mmrl.data.media.guard import DecodeTask, decode
from lightning_mmrl.data.synthetic import faces, voices
from lightning_mmrl.data.synthetic.video_file import write_clip
from lightning_mmrl.models.families.qwen2_5_omni import OmniEncoder
from lightning_mmrl.models.families.qwen_vision import normalized
from lightning_mmrl.models.tiny import build_tiny_omni
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.media import DecodedAudio, DecodedVideo
from lightning_mmrl.types.records import MediaRef

WIDTH, HEIGHT, SECONDS, RATE = 640, 360, 5, 16
RELEASED = {"shortest_edge": 3136, "longest_edge": 12_845_056}
BOUNDED = 100_352
REFS = (MediaRef(kind="video", path="clip.mp4"), MediaRef(kind="audio", path="clip.mp4"))


def main() -> None:
    """Weighs all clips in every variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--noise", type=float, default=3.0, help="standard deviation of 255 levels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        built = build_tiny_omni(work / "model", text=["a clip"], max_audio_s=2 * SECONDS)
        encoder = OmniEncoder.from_checkpoint(built)
        encoder.processor.video_processor.size = RELEASED
        rng = np.random.default_rng(0)
        paths = [write(work / f"{number}.mp4", rng, options.noise) for number in range(options.clips)]
        free, bounded = MediaSettings(num_frames=8), MediaSettings(num_frames=8, max_frame_pixels=BOUNDED)
        rows = {
            "float32, as the processor gives it": weighed(paths, encoder, free, float32_bytes),
            "cached, equal pixels": weighed(paths, encoder, free, cached_bytes(work / "free")),
            f"cached, max_frame_pixels={BOUNDED}": weighed(paths, encoder, bounded, cached_bytes(work / "bounded")),
        }
    most = rows["float32, as the processor gives it"]
    print(machine())
    print("| variant | MB per clip | share |\n|---|---|---|")
    for name, size in rows.items():
        print(f"| {name} | {size / 1e6:.2f} | {size / most:.4f} |")


def write(path: Path, rng: np.random.Generator, noise: float) -> Path:
    """Writes a clip of one face and voice."""
    style, voice = faces.FaceStyle(pixel_noise=0.0), voices.VoiceStyle()
    drawn = faces.render_face("smile", faces.draw_identity(style, rng), style, rng)
    frames = []
    for index in range(SECONDS * RATE):
        image = Image.fromarray(drawn[index * len(drawn) // (SECONDS * RATE)])
        pixels = np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float64)
        frames.append(np.clip(pixels + rng.normal(0, noise, pixels.shape), 0, 255).astype(np.uint8))
    wave = voices.render_voice("fast", voices.draw_identity(voice, rng), voice, rng)
    wave = np.resize(wave, SECONDS * 16_000).astype(np.float32)
    write_clip(path, np.stack(frames), RATE, wave, 16_000)
    return path


def weighed(
    paths: list[Path], encoder: OmniEncoder, media: MediaSettings, weigh: Callable[[Mapping[str, Tensor]], int]
) -> float:
    """Mean bytes of the picture and sound of a clip."""
    return sum(weigh(tensors) for path in paths for tensors in encoded(path, encoder, media)) / len(paths)


def encoded(path: Path, encoder: OmniEncoder, media: MediaSettings) -> Iterator[dict[str, Tensor]]:
    """The encoded picture and sound of a clip."""
    for ref in REFS:
        found = decode(DecodeTask(path=path, ref=ref, settings=media, own=encoder.own_sizes))
        if isinstance(found, DecodedVideo):
            yield encoder.encode_video(found)
        elif isinstance(found, DecodedAudio):
            yield encoder.encode_audio(found)


def float32_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Size of a safetensors file of normalized patches."""
    return len(save(normalized(tensors)))


def cached_bytes(folder: Path) -> Callable[[Mapping[str, Tensor]], int]:
    """Puts media into a cache and gives the size of each entry; reading it back must give the same."""
    cache = MediaCache(folder)

    def weigh(tensors: Mapping[str, Tensor]) -> int:
        before = sum(file.num_bytes for file in stored_files(folder))
        key = f"{time.time_ns():064x}"
        cache.put(key, tensors)
        found = cache.get(key)
        if found is None or any(not tensor.equal(found[name]) for name, tensor in tensors.items()):
            raise SystemExit("an entry differs from what was put")
        return sum(file.num_bytes for file in stored_files(folder)) - before

    return weigh


if __name__ == "__main__":
    main()
