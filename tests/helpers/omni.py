"""A tiny omni model, and prompts about noise clips, for tests that need the real architecture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import built
import numpy as np
import torch

from lightning_mmrl.data.collate import EncodedSample, collate_prompts
from lightning_mmrl.models.families.qwen2_5_omni import OmniEncoder, OmniThinker
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.tiny import build_tiny_omni
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.types.batches import PromptBatch
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, DecodedVideo
from lightning_mmrl.types.records import Message, Sample

TEXT = (
    "system",
    "user",
    "assistant",
    "You are a helpful assistant.",
    "Which emotion?",
    "lowered brows and fast tone",
    "angry",
)


def build(directory: Path) -> Path:
    """The smallest model that still has every part."""
    return built.copy(build_tiny_omni, directory, text=TEXT, hidden_size=64, num_layers=2, tower_size=32)


def load(checkpoint: Path, dtype: torch.dtype = torch.float64, temperature: float = 1.0) -> tuple[OmniEncoder, Policy]:
    """Encoder and policy; float64, so that two ways of computing the same thing agree to rounding."""
    encoder = OmniEncoder.from_checkpoint(checkpoint)
    backbone = OmniThinker.from_checkpoint(checkpoint, dtype=dtype)
    spread(backbone.model)
    return encoder, Policy(backbone, banned_token_ids=encoder.banned_token_ids(), temperature=temperature)


def engine(encoder: Any, policy: Policy, **settings: Any) -> HFEngine:
    """A policy of any family as an engine; it ends at the encoder's end tokens unless it is told others."""
    settings = {"eos_token_ids": encoder.eos_token_ids, **settings}
    return HFEngine(policy, decode=encoder.decode, pad_token_id=encoder.pad_token_id, **settings)


def spread(model: torch.nn.Module) -> None:
    """Larger weights than at initialisation: attention and media then matter, and a wrong mask or position shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)


def noise_image(seed: int, height: int = 64, width: int = 30) -> DecodedImage:
    """Random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return DecodedImage(pixels=pixels)


def noise_video(seed: int, num_frames: int = 4, duration_s: float = 1.5) -> DecodedVideo:
    """Random frames."""
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, 64, 64, 3), dtype=np.uint8)
    times = tuple((np.arange(num_frames) + 0.5) * duration_s / num_frames)
    return DecodedVideo(frames=frames, timestamps_s=times, duration_s=duration_s)


def noise_audio(seed: int, num_samples: int = 24_000) -> DecodedAudio:
    """Random sound."""
    waveform = np.random.default_rng(seed).normal(0, 0.1, num_samples).astype(np.float32)
    return DecodedAudio(waveform=waveform, sample_rate_hz=16_000)


def encoded(encoder: OmniEncoder, name: str, content: str, seed: int) -> EncodedSample:
    """One prompt; each media tag in `content` gets noise."""
    media = []
    if "<image>" in content:
        media.append(encoder.encode_image(noise_image(seed)))
    if "<video>" in content:
        media.append(encoder.encode_video(noise_video(seed)))
    if "<audio>" in content:
        media.append(encoder.encode_audio(noise_audio(seed, 24_000 - 1600 * seed)))
    messages = (Message(role="user", content=content),)
    prompt = encoder.encode_prompt(messages, "", media)
    return EncodedSample(sample=Sample(id=name, messages=messages, solution="angry"), prompt=prompt)


CONTENTS = ("<video><audio>Which emotion?", "<video>Which emotion?", "<audio>angry", "Which emotion? angry, user")
WITH_IMAGES = (*CONTENTS, "<image>Which emotion?", "angry<image><audio>user")


def prompts(encoder: OmniEncoder, contents: Sequence[str] = CONTENTS) -> PromptBatch:
    """A batch of prompts of different lengths and modalities."""
    items = [encoded(encoder, f"p{index}", content, index) for index, content in enumerate(contents)]
    return collate_prompts(items, encoder.pad_token_id)


def ragged_completions(encoder: OmniEncoder, num_rows: int, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Random allowed tokens [N, C] and a mask with rows of different lengths."""
    generator = torch.Generator().manual_seed(1)
    banned = set(encoder.banned_token_ids())
    num_rows_of_head = encoder.config.get_text_config().vocab_size
    allowed = torch.tensor([token for token in range(num_rows_of_head) if token not in banned])
    tokens = allowed[torch.randint(len(allowed), (num_rows, width), generator=generator)]
    lengths = torch.randint(1, width + 1, (num_rows,), generator=generator)
    lengths[0] = width
    return tokens, torch.arange(width) < lengths[:, None]
