"""Qwen3-VL: text, image and video in, text out; a clip is a row of pictures with their times written between them.

Features of inner layers of the tower are added to the decoder's first layers (deepstack, arXiv:2406.04334). A feature
row holds the input embedding first and then the features of these layers, so that each kind of media has one tensor.

Prompts are as in transformers 5.19, whose processor keeps the chat template's pair of markers around a clip. The first
release and vLLM (vllm issue 46817) drop that pair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from lightning_mmrl.models.families.backbone import LayerKinds
from lightning_mmrl.models.families.encoder import Encoded
from lightning_mmrl.models.families.family import Family
from lightning_mmrl.models.families.media_keys import VIDEO_GRID, VIDEO_SECONDS, VIDEO_TIMES
from lightning_mmrl.models.families.qwen_vision import (
    VISION_KEYS,
    QwenVisionBackbone,
    QwenVisionEncoder,
    patch_layout,
)
from lightning_mmrl.models.positions import Span
from lightning_mmrl.ops.transfer import true_places
from lightning_mmrl.types.media import DecodedVideo

FAMILY = Family(
    name="Qwen3-VL",
    config=Qwen3VLConfig,
    processor=Qwen3VLProcessor,
    model=Qwen3VLForConditionalGeneration,
    # Times are written as text, so positions see pictures only; after a picture both rules continue at the same one.
    layout=patch_layout,
    medium_keys=VISION_KEYS,
)


@dataclass(frozen=True)
class Qwen3VLEncoder(QwenVisionEncoder):
    """The encoder of Qwen3-VL."""

    declaration = FAMILY
    frames_share_size = True

    def encode_video(self, video: DecodedVideo) -> dict[str, Tensor]:
        """Patches [patches, features] of bytes, grid [1, 3], scale [1, 2, 3] and seconds of each temporal patch [T]."""
        encoded = super().encode_video(video)
        del encoded[VIDEO_SECONDS]
        times = patch_times(video.timestamps_s, self.processor.video_processor.temporal_patch_size)
        return {**encoded, VIDEO_TIMES: times}

    def insert_clip(self, clip: Encoded) -> tuple[str, Sequence[Span]]:
        """The frames of a clip, each between markers and after its time."""
        spans = self.layout.frames(clip[VIDEO_GRID][0].tolist())
        start, end = self.processor.vision_start_token, self.processor.vision_end_token
        frames = [
            f"<{time:.1f} seconds>{start}{self.tokens['video'] * len(span.kinds)}{end}"
            for time, span in zip(clip[VIDEO_TIMES].tolist(), spans, strict=True)
        ]
        return "".join(frames), spans


def patch_times(timestamps_s: Sequence[float], frames_per_patch: int) -> Tensor:
    """The time of each temporal patch [T], midway from its first to last frame; the last frame fills the last patch.

    >>> patch_times([0.0, 0.5, 1.0], 2).tolist()
    [0.25, 1.0]
    """
    missing = -len(timestamps_s) % frames_per_patch
    times = torch.tensor([*timestamps_s, *[timestamps_s[-1]] * missing], dtype=torch.float64)
    patches = times.view(-1, frames_per_patch)
    return (patches[:, 0] + patches[:, -1]) / 2


class Qwen3VL(QwenVisionBackbone):
    """A loaded Qwen3-VL; its feature rows have the decoder's width times (1 + the number of deepstack layers)."""

    declaration = FAMILY
    projectors_at: ClassVar[Mapping[str, Sequence[str]]] = {
        "vision": ("model.visual.merger", "model.visual.deepstack_merger_list")
    }
    tower_layers: ClassVar[Mapping[str, LayerKinds]] = {
        "vision": {
            "attention": ("attn.qkv", "attn.proj"),
            "mlp": ("mlp.linear_fc1", "mlp.linear_fc2"),
            "projector": (
                "merger.linear_fc1",
                "merger.linear_fc2",
                "deepstack_merger_list.linear_fc1",
                "deepstack_merger_list.linear_fc2",
            ),
        }
    }

    def tower_rows(self, output: Any) -> list[Tensor]:
        """The rows of each medium: the projected features, then the features of each deepstack layer."""
        return [
            torch.cat(layers, dim=-1) for layers in zip(output.pooler_output, *output.deepstack_features, strict=True)
        ]

    def place_features(
        self, embeddings: Tensor, slots: Mapping[str, Tensor], features: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Puts feature rows where their placeholders are, and returns the deepstack features that the decoder adds.

        Arguments and result are as in `FamilyBackbone.place_features`.
        """
        width = embeddings.shape[-1]
        first = {kind: rows[:, :width] for kind, rows in features.items()}
        embeddings, more = super().place_features(embeddings, slots, first)
        if not features:
            return embeddings, more
        # The decoder adds rows of all kinds in the order of the tokens.
        places = torch.cat([true_places(slots[kind], len(rows)) for kind, rows in features.items()])
        deep = torch.cat([rows[:, width:] for rows in features.values()])[places.argsort()]
        seen = torch.stack([slots[kind] for kind in features]).any(0)
        return embeddings, {
            **more,
            "visual_pos_masks": seen,
            "deepstack_visual_embeds": list(deep.split(width, dim=-1)),
        }
