"""What the families that see share: pictures and clips in their encoder, the vision tower in their backbone."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_mmrl.models.families import qwen_media
from lightning_mmrl.models.families.backbone import QwenBackbone, vision_rows
from lightning_mmrl.models.families.encoder import QwenEncoder
from lightning_mmrl.models.families.qwen_media import (
    IMAGE_GRID,
    IMAGE_PIXELS,
    KINDS,
    VIDEO_GRID,
    VIDEO_PIXELS,
    VIDEO_SECONDS,
    Encoded,
)
from lightning_mmrl.models.positions import Span
from lightning_mmrl.types.batches import MediaInputs
from lightning_mmrl.types.media import DecodedImage, DecodedVideo
from lightning_mmrl.types.records import MediaKind

Waiting = Mapping[MediaKind, Iterator[Encoded]]
"""The encoded media that have no place yet."""


@dataclass(frozen=True)
class VisionEncoder(QwenEncoder):
    """Turns messages, pictures and clips into model inputs."""

    kinds: ClassVar[frozenset[MediaKind]] = frozenset({"image", "video"})

    @property
    def fingerprint(self) -> str:
        """Hash of everything that changes encoded media: part of the cache key."""
        return qwen_media.fingerprint((self.processor.video_processor, self.processor.image_processor))

    @property
    def marker_ids(self) -> frozenset[int]:
        """Ids around pictures and clips."""
        return frozenset({self.config.vision_start_token_id, self.config.vision_end_token_id})

    def encode_image(self, image: DecodedImage) -> dict[str, Tensor]:
        """Patches [patches, features] and grid [1, 3] of one picture."""
        return qwen_media.encode_image(self.processor.image_processor, image)

    def encode_video(self, video: DecodedVideo) -> dict[str, Tensor]:
        """Patches [patches, features], grid [1, 3] and seconds per temporal patch [1] of one clip."""
        return qwen_media.encode_video(self.processor.video_processor, video)

    def blank_image(self, encoded: Encoded) -> dict[str, Tensor]:
        """A picture of the same size, uniformly grey: what the model sees when the picture is missing."""
        return qwen_media.blank_image(self.processor.image_processor, encoded)

    def blank_video(self, encoded: Encoded) -> dict[str, Tensor]:
        """The same clip with every frame uniformly grey."""
        return qwen_media.blank_video(self.processor.video_processor, encoded)

    def insert_media(self, text: str, media: Sequence[Encoded]) -> tuple[str, list[Span]]:
        """A rendered conversation with one placeholder for each feature row, and the media's spans.

        Raises:
            MediaError: The media tokens of the text are not those of the media.
        """
        waiting = qwen_media.by_kind(text, self.tokens, media)
        # With a group around the pattern, split gives text and places in turns.
        pieces = re.split("(" + "|".join(map(re.escape, self.places)) + ")", text)
        spans = []
        for index in range(1, len(pieces), 2):
            pieces[index], more = self.insert(pieces[index], waiting)
            spans += more
        return "".join(pieces), spans

    @property
    def tokens(self) -> dict[MediaKind, str]:
        """The placeholder of each kind."""
        return {kind: getattr(self.processor, f"{kind}_token") for kind in KINDS if kind in self.kinds}

    @property
    def places(self) -> tuple[str, ...]:
        """What the chat template writes where media go; a longer text before those it contains."""
        return tuple(self.tokens.values())

    def insert(self, place: str, waiting: Waiting) -> tuple[str, Sequence[Span]]:
        """What stands at a place of the prompt, for the next one of the waiting media of its kind."""
        if place == self.tokens["video"]:
            return self.insert_clip(qwen_media.taken(waiting, "video"))
        span = self.layout.picture(qwen_media.taken(waiting, "image")[IMAGE_GRID][0].tolist())
        return place * len(span.kinds), (span,)

    def insert_clip(self, clip: Encoded) -> tuple[str, Sequence[Span]]:
        """What stands in the place of a clip."""
        span = self.layout.clip(clip[VIDEO_GRID][0].tolist(), clip[VIDEO_SECONDS][0])
        return self.tokens["video"] * len(span.kinds), (span,)


class VisionBackbone(QwenBackbone):
    """A loaded model with a vision tower."""

    text_at = "model.language_model"
    towers_at: ClassVar[Mapping[str, str]] = {"vision": "model.visual"}
    medium_keys: ClassVar[Mapping[MediaKind, str]] = {"image": IMAGE_GRID, "video": VIDEO_GRID}

    def media_features(self, media: MediaInputs) -> dict[str, Tensor]:
        """Runs the tower once over all media of the batch; rows [tokens, hidden] in prompt order, keyed by kind."""
        return qwen_media.vision_features(self.model, media.tensors, self.tower_rows)

    def minimal_media(self, kind: MediaKind) -> dict[str, Tensor]:
        """One row of a picture or clip, black."""
        config = self.model.config.vision_config
        grid = torch.tensor([[1, config.spatial_merge_size, config.spatial_merge_size]])
        width = config.in_channels * config.temporal_patch_size * config.patch_size**2
        pixels = torch.zeros(int(grid.prod()), width)
        if kind == "image":
            return {IMAGE_PIXELS: pixels, IMAGE_GRID: grid}
        return {VIDEO_PIXELS: pixels, VIDEO_GRID: grid}

    def tower_rows(self, output: Any) -> Sequence[Tensor]:
        """The feature rows of each medium in what the tower returned."""
        return output.pooler_output

    def feature_rows(self, media: MediaInputs) -> dict[str, Tensor]:
        """How many feature rows the tower will make of every picture and clip."""
        return vision_rows(media, self.model.config.vision_config.spatial_merge_size)
