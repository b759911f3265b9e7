"""Tiny handoffs of every family, and files of every kind to ask them about."""

from pathlib import Path
from typing import Any

import av
import families
import numpy as np
import omni
from clips import tone, write_grey, write_wav
from PIL import Image

from lightning_mmrl.app.assembly import Assembly
from lightning_mmrl.config.compose import compose
from lightning_mmrl.curriculum.artifacts import write_artifact
from lightning_mmrl.models.export import export_checkpoint
from lightning_mmrl.training.console import ConsoleProgress

PRESETS = {name: f"model=tiny_{name}" for name in families.FAMILIES} | {"qwen2_5_omni": "model=tiny_omni"}


def write(name: str, folder: Path, *overrides: str) -> Path:
    """A handoff of a family with random weights that are far from uniform, as a run would leave it.

    Its generation config has what released checkpoints have: greedy answers must not depend on it.
    """
    encoder, backbone = families.parts(name, families.build(name, folder / "base"))
    omni.spread(backbone.model)
    backbone.model.generation_config.update(do_sample=True, repetition_penalty=1.3, temperature=0.7, top_p=0.8)
    config = compose([PRESETS[name], "data.media.num_frames=4", "evaluation.max_new_tokens=12", *overrides])
    facts: dict[str, Any] = Assembly(config=config, console=ConsoleProgress(quiet=True)).facts()
    facts["dtype"] = "float32"
    target = folder / "handoff"
    write_artifact(target, lambda directory: export_checkpoint(backbone.model.float(), encoder, directory), facts)
    return target


def write_files(folder: Path) -> Path:
    """A clip with sound, a silent one, a sound, a picture, and one that is not upright."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "picture.png")
    Image.fromarray(np.dstack([noise, noise[..., 0]])).save(folder / "transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(noise).save(folder / "turned.jpg", exif=exif)
    write_grey(folder / "silent.mp4", [index / 10 for index in range(15)], size=112)
    write_wav(folder / "sound.wav", tone(440, 1.0, 16_000), 16_000)
    write_wav(folder / "other_rate.wav", np.stack([tone(440, 1.0, 22_050), tone(300, 1.0, 22_050)], axis=1), 22_050)
    write_both(folder / "clip.mp4")
    return folder


def write_both(path: Path) -> None:
    """1.5 s of a clip that gets brighter, with a tone."""
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=16_000)
        video.width = video.height = 112
        video.pix_fmt, audio.layout = "yuv420p", "mono"
        for index in range(15):
            image = np.full((112, 112, 3), 10 + 15 * index, dtype=np.uint8)
            image[10:60, 5 * index : 5 * index + 30] = 200
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode(None))
        sound = av.AudioFrame.from_ndarray(tone(330, 1.5, 16_000)[None], format="fltp", layout="mono")
        sound.sample_rate = 16_000
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
