"""Every model family at tiny size, with one interface, for tests that hold for all of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import built
import omni
import pytest
import torch
import yaml
from torch import nn

from lightning_mmrl.config.folders import configs_dir
from lightning_mmrl.models.families.qwen2_5_omni import OmniEncoder, OmniThinker
from lightning_mmrl.models.families.qwen2_5_vl import Qwen25VL, Qwen25VLEncoder
from lightning_mmrl.models.families.qwen2_vl import Qwen2VL, Qwen2VLEncoder
from lightning_mmrl.models.families.qwen3_vl import Qwen3VL, Qwen3VLEncoder
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.tiny import build_tiny_omni
from lightning_mmrl.models.tiny_qwen import (
    build_tiny_qwen2_5_vl,
    build_tiny_qwen2_vl,
    build_tiny_qwen3_vl,
)
from lightning_mmrl.registry.names import FAMILIES as REGISTERED

SECONDS_PER_GRID = 2 / (4 / 1.5)
"""Of the noise clips: four frames in 1.5 s, two frames per temporal patch."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to build and load a family, prompts it can read, and what its stock forward wants beside ids and media."""

    build: Callable[..., Path]
    encoder: Any
    backbone: Any
    contents: tuple[str, ...]
    stock_inputs: Callable[[Any, torch.Tensor, dict], dict]
    stock_positions: Callable[[Any, torch.Tensor, dict], torch.Tensor]
    sizes: dict


def _clip_seconds(media):
    return torch.full((len(media["video_grid_thw"]),), SECONDS_PER_GRID) if "video_grid_thw" in media else None


def _token_types(config, ids):
    return (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()


def _vision_positions(model, ids, media):
    """Positions [3, P] as the model itself finds them; `media` are encoded, with their times."""
    more = {"second_per_grid_ts": media["video_second_per_grid"]} if "video_second_per_grid" in media else {}
    grids = {key: media.get(key) for key in ("image_grid_thw", "video_grid_thw")}
    return model.model.get_rope_index(ids[None], _token_types(model.config, ids[None]), **grids, **more)[0][:, 0]


def omni_positions(model, ids, media, **more):
    """The thinker takes the numbers of spectrogram frames of sounds besides."""
    frames = media["feature_attention_mask"].sum(-1) if "feature_attention_mask" in media else None
    positions, _ = model.get_rope_index(
        ids[None],
        attention_mask=torch.ones_like(ids[None]),
        audio_seqlens=frames,
        second_per_grids=media.get("video_second_per_grid"),
        **{key: media.get(key) for key in ("image_grid_thw", "video_grid_thw")},
        **more,
    )
    return positions[:, 0]


def _text_positions(model, ids, media):
    """A text model counts its tokens."""
    return torch.arange(len(ids)).expand(3, -1)


VISION_CONTENTS = (
    "<video>Which emotion?",
    "<image>angry",
    "Which emotion? angry, user",
    "user<image><video>Which emotion?",
    "<video>angry<image>",
)
SIZES = {"hidden_size": 64, "num_layers": 2}

WITH_MEDIA = {
    "qwen2_5_omni": Family(
        build=build_tiny_omni,
        encoder=OmniEncoder,
        backbone=OmniThinker,
        contents=omni.WITH_IMAGES,
        stock_inputs=lambda config, ids, media: {"video_second_per_grid": _clip_seconds(media)},
        stock_positions=omni_positions,
        sizes={**SIZES, "tower_size": 32},
    ),
    "qwen2_5_vl": Family(
        build=build_tiny_qwen2_5_vl,
        encoder=Qwen25VLEncoder,
        backbone=Qwen25VL,
        contents=VISION_CONTENTS,
        stock_inputs=lambda config, ids, media: {
            "second_per_grid_ts": _clip_seconds(media),
            "mm_token_type_ids": _token_types(config, ids),
        },
        stock_positions=_vision_positions,
        sizes={**SIZES, "tower_size": 32},
    ),
    "qwen2_vl": Family(
        build=build_tiny_qwen2_vl,
        encoder=Qwen2VLEncoder,
        backbone=Qwen2VL,
        contents=VISION_CONTENTS,
        stock_inputs=lambda config, ids, media: {"mm_token_type_ids": _token_types(config, ids)},
        stock_positions=_vision_positions,
        sizes={**SIZES, "tower_size": 32},
    ),
    "qwen3_vl": Family(
        build=build_tiny_qwen3_vl,
        encoder=Qwen3VLEncoder,
        backbone=Qwen3VL,
        contents=VISION_CONTENTS,
        stock_inputs=lambda config, ids, media: {"mm_token_type_ids": _token_types(config, ids)},
        stock_positions=_vision_positions,
        # Features that the tower adds after the second layer show in other tokens' states from the third on.
        sizes={**SIZES, "num_layers": 3, "tower_size": 32},
    ),
}


def _text_families() -> dict[str, Family]:
    """Every family without media, by the preset that builds a tiny model of it."""
    found = {}
    for name, (backbone, encoder) in REGISTERED.items():
        if name in WITH_MEDIA:
            continue
        preset = yaml.safe_load((configs_dir() / "model" / f"tiny_{name}.yaml").read_text())
        found[name] = Family(
            build=resolve_name(preset["build"]["_target_"]),
            encoder=resolve_name(encoder).__self__,
            backbone=resolve_name(backbone).__self__,
            contents=("Which emotion?", "angry", "Which emotion? angry, user"),
            stock_inputs=lambda config, ids, media: {},
            stock_positions=_text_positions,
            sizes=SIZES,
        )
    return found


TEXT = _text_families()
FAMILIES = {**WITH_MEDIA, **TEXT}


QUICK = ("qwen2_5_omni", "qwen2")
"""Families that stand for the others in `make test`: one reads every kind of medium, one reads text alone."""


def each(names: Iterable[str] = FAMILIES) -> list[Any]:
    """Families as parameters of a test; only `make test-all` runs the test for families outside `QUICK`."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(names)]


def build(name: str, directory: Path) -> Path:
    """The smallest model of a family that still has every part."""
    family = FAMILIES[name]
    return built.copy(family.build, directory, text=omni.TEXT, **family.sizes)


def parts(name: str, checkpoint: Path, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """Encoder and backbone, as saved."""
    family = FAMILIES[name]
    return family.encoder.from_checkpoint(checkpoint), family.backbone.from_checkpoint(checkpoint, dtype=dtype)


def load(
    name: str, checkpoint: Path, dtype: torch.dtype = torch.float64, temperature: float = 1.0
) -> tuple[Any, Policy]:
    """Encoder and policy, as saved; in float64 all through if that is the dtype."""
    encoder, backbone = parts(name, checkpoint, dtype)
    if dtype == torch.float64:
        exact(backbone.model)
    return encoder, Policy(backbone, banned_token_ids=encoder.banned_token_ids(), temperature=temperature)


def enliven(model: nn.Module) -> None:
    """Larger weights, and a head apart from the embeddings: tied ones repeat a token for ever."""
    omni.spread(model)
    weight = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model.lm_head.weight = nn.Parameter(0.4 * weight)


def frequent_ends(encoder: Any, policy: Policy) -> list[int]:
    """Every sixth token ends a row, so that rows end at many different steps."""
    banned = set(encoder.banned_token_ids())
    return [token for token in range(0, len(policy.banned), 6) if token not in banned]


def exact(model: nn.Module) -> None:
    """Norms in the states' own precision: transformers computes them in float32 whatever the weights are."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda states, norm=module: (
                norm.weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + norm.variance_epsilon)
            )


def stacked(media: list) -> dict:
    """Encoded media of one prompt, each key along its first axis; sounds padded."""
    keys = {key for item in media for key in item if key != "feature_attention_mask"}
    out = {key: torch.cat([item[key] for item in media if key in item]) for key in keys}
    frames = [item["feature_attention_mask"][0] for item in media if "feature_attention_mask" in item]
    if frames:
        out["feature_attention_mask"] = nn.utils.rnn.pad_sequence(frames, batch_first=True)
    return out


def placeholders(encoder: Any) -> set[int]:
    """Token ids that stand for feature rows."""
    return {getattr(encoder.config, f"{kind}_token_id") for kind in encoder.media_kinds}


def prompts(name: str, encoder: Any) -> Any:
    """A batch with every kind of medium that the family reads."""
    return omni.prompts(encoder, FAMILIES[name].contents)


def stock_logprobs(name: str, policy: Policy, batch: Any) -> torch.Tensor:
    """Each completion in a row of its own through the stock forward, which finds its own positions."""
    rows = []
    for logits, completion in stock_rows(name, policy, batch):
        masked = logits[:-1].masked_fill(policy.banned, -torch.inf) / policy.temperature
        logprobs = masked.log_softmax(-1).gather(-1, completion[:, None])[:, 0]
        rows.append(nn.functional.pad(logprobs, (0, batch.completion_ids.shape[1] - len(completion))))
    return torch.stack(rows)


def stock_values(name: str, trunk: Policy, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of a critic's head in the same rows: before each token, and after it."""
    before, behind = [], []
    for values, completion in stock_rows(name, trunk, batch):
        padding = (0, batch.completion_ids.shape[1] - len(completion))
        before.append(nn.functional.pad(values[:-1, 0], padding))
        behind.append(nn.functional.pad(values[1:, 0], padding))
    return torch.stack(before), torch.stack(behind)


def stock_rows(name: str, policy: Policy, batch: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For each completion what the head says from the prompt's last token to its own last one, and its tokens."""
    stock: Any = policy.model
    for row in range(len(batch.completion_ids)):
        prompt = batch.prompts.select([row // batch.group_size])
        keep = prompt.prompt_mask[0]
        completion = batch.completion_ids[row, : int(batch.completion_mask[row].sum())]
        ids = torch.cat([prompt.input_ids[0, keep], completion])[None]
        media = dict(policy.media.backbone.model_inputs(prompt.media))
        more = FAMILIES[name].stock_inputs(stock.config, ids, media)
        logits = stock(input_ids=ids, attention_mask=torch.ones_like(ids), **media, **more).logits
        yield logits[0, keep.sum() - 1 :], completion
