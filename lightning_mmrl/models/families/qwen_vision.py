"""The base of the Qwen families with vision: encoders turn pictures and clips into patches for one vision tower."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend

from lightning_mmrl.errors import MediaError
from lightning_mmrl.models.families.backbone import FamilyBackbone
from lightning_mmrl.models.families.encoder import Encoded, FamilyEncoder
from lightning_mmrl.models.families.family import KINDS
from lightning_mmrl.models.families.media_keys import (
    IMAGE_GRID,
    IMAGE_PIXELS,
    IMAGE_SCALE,
    VIDEO_GRID,
    VIDEO_PIXELS,
    VIDEO_SCALE,
    VIDEO_SECONDS,
)
from lightning_mmrl.models.families.places import Waiting, next_medium
from lightning_mmrl.models.positions import MediaLayout, Span
from lightning_mmrl.settings.model import PositionRule
from lightning_mmrl.types.batches import MediaInputs
from lightning_mmrl.types.media import DecodedImage, DecodedVideo, OwnSizes
from lightning_mmrl.types.records import MediaKind

VISION_KEYS: Mapping[MediaKind, str] = {"image": IMAGE_GRID, "video": VIDEO_GRID}
_PIXELS = {IMAGE_GRID: IMAGE_PIXELS, VIDEO_GRID: VIDEO_PIXELS}
_SCALES = {IMAGE_GRID: IMAGE_SCALE, VIDEO_GRID: VIDEO_SCALE}

CHANNEL_AXIS = "channels_last"
"""Axis order of decoded pictures; without it a processor would take a picture of 3 rows for one of 3 color planes."""


def patch_layout(config: Any, rule: PositionRule) -> MediaLayout:
    """One position per temporal patch, whatever its duration."""
    return MediaLayout(rule=rule, merge_size=config.vision_config.spatial_merge_size)


@dataclass(frozen=True)
class QwenVisionEncoder(FamilyEncoder):
    """Turns messages, pictures and clips into model inputs."""

    @property
    def media_processors(self) -> tuple[Any, ...]:
        """The processors of clips and of pictures."""
        return self.processor.video_processor, self.processor.image_processor

    frames_share_size: ClassVar[bool] = False
    """Whether the video processor's bounds of pixels are about all frames of a clip together."""

    @property
    def own_sizes(self) -> OwnSizes:
        """The bounds of pixels in the processors of pictures and of clips."""
        images, clips = self.processor.image_processor, self.processor.video_processor
        factor = images.patch_size * images.merge_size
        is_capped = self.frames_share_size and clips.cap_pixels_per_frame
        return OwnSizes(
            shown_by=self.family,
            factor=factor,
            image=(images.size["shortest_edge"], images.size["longest_edge"]),
            frame=(clips.size["shortest_edge"], clips.size["longest_edge"]),
            per_clip=self.frames_share_size,
            frame_limit=clips.max_video_tokens * factor**2 if is_capped else None,
        )

    @property
    def marker_ids(self) -> frozenset[int]:
        """Ids around pictures and clips."""
        return frozenset({self.config.vision_start_token_id, self.config.vision_end_token_id})

    def encode_image(self, image: DecodedImage) -> dict[str, Tensor]:
        """Patches [patches, features] of bytes, grid [1, 3] and scale [1, 2, 3] of one picture."""
        process = self.processor.image_processor
        out = process(images=[image.pixels], **_how(process, resized=image.resized_from is not None))
        return {IMAGE_PIXELS: out[IMAGE_PIXELS], IMAGE_GRID: out[IMAGE_GRID], **_scale(process, IMAGE_SCALE)}

    def encode_video(self, video: DecodedVideo) -> dict[str, Tensor]:
        """Patches [patches, features] of bytes, grid [1, 3], scale [1, 2, 3] and seconds per temporal patch [1]."""
        process = self.processor.video_processor
        how = _how(process, resized=video.resized_from is not None)
        out = process(videos=[video.frames], do_sample_frames=False, **how)
        seconds = torch.tensor([process.temporal_patch_size / video.sampled_fps], dtype=torch.float32)
        encoded = {VIDEO_PIXELS: out[VIDEO_PIXELS], VIDEO_GRID: out[VIDEO_GRID], **_scale(process, VIDEO_SCALE)}
        return {**encoded, VIDEO_SECONDS: seconds}

    def blank_image(self, encoded: Encoded) -> dict[str, Tensor]:
        """A picture of the same size, uniformly grey."""
        process = self.processor.image_processor
        _, height, width = encoded[IMAGE_GRID][0].tolist()
        return {**encoded, IMAGE_PIXELS: _grey_image(process, height * process.patch_size, width * process.patch_size)}

    def blank_video(self, encoded: Encoded) -> dict[str, Tensor]:
        """The same clip with every frame uniformly grey."""
        process = self.processor.video_processor
        pairs, height, width = encoded[VIDEO_GRID][0].tolist()
        size = (pairs * process.temporal_patch_size, height * process.patch_size, width * process.patch_size)
        return {**encoded, VIDEO_PIXELS: _grey_video(process, *size)}

    def media_text(self, kind: MediaKind) -> str:
        """The placeholder of a picture or clip between its markers.

        Raises:
            MediaError: The family does not read this kind.
        """
        if kind not in self.media_kinds:
            raise self.unreadable(kind)
        ids = self.config.vision_start_token_id, self.config.vision_end_token_id
        start, end = self.tokenizer.convert_ids_to_tokens(ids)
        return f"{start}{self.tokens[kind]}{end}"

    def insert_media(self, text: str, media: Sequence[Encoded]) -> tuple[str, list[Span]]:
        """A rendered conversation with one placeholder for each feature row, and the media's spans.

        Raises:
            MediaError: A kind has more or fewer tokens in the text than media.
        """
        waiting: dict[MediaKind, Iterator[Encoded]] = {}
        for kind, token in self.tokens.items():
            items = [item for item in media if self.declaration.medium_keys[kind] in item]
            if (found := text.count(token)) != len(items):
                raise MediaError(
                    f"a prompt has {found} {token} tokens for {len(items)} media; mark each medium with its tag"
                )
            waiting[kind] = iter(items)
        # With a group around the pattern, split gives text and places in turns.
        pieces = re.split("(" + "|".join(map(re.escape, self.places)) + ")", text)
        spans: list[Span] = []
        for index in range(1, len(pieces), 2):
            pieces[index], more = self.insert(waiting, pieces[index])
            spans += more
        return "".join(pieces), spans

    @property
    def tokens(self) -> dict[MediaKind, str]:
        """The placeholder of each kind."""
        return {kind: getattr(self.processor, f"{kind}_token") for kind in KINDS if kind in self.media_kinds}

    @property
    def places(self) -> tuple[str, ...]:
        """Texts that the chat template writes where media go; a longer text before the texts it contains."""
        return tuple(self.tokens.values())

    def insert(self, waiting: Waiting, place: str) -> tuple[str, Sequence[Span]]:
        """Returns text and spans for a place of the prompt, which takes the next waiting medium of its kind."""
        if place == self.tokens["video"]:
            return self.insert_clip(next_medium(waiting, "video"))
        span = self.layout.picture(next_medium(waiting, "image")[IMAGE_GRID][0].tolist())
        return place * len(span.kinds), (span,)

    def insert_clip(self, clip: Encoded) -> tuple[str, Sequence[Span]]:
        """The text and spans of a clip."""
        span = self.layout.clip(clip[VIDEO_GRID][0].tolist(), clip[VIDEO_SECONDS][0])
        return self.tokens["video"] * len(span.kinds), (span,)


def _fuses(process: Any) -> bool:
    """Whether a processor rescales and normalizes in one formula, so that bytes and a scale are enough to repeat it."""
    return bool(process.do_rescale and process.do_normalize) and isinstance(process, TorchvisionBackend)


def _how(process: Any, *, resized: bool) -> dict[str, Any]:
    """Options of a processor's call; it leaves bytes as they are if `normalized` can do the rest later.

    `resized` is True for a medium that has the size that the model sees.
    """
    how = {"input_data_format": CHANNEL_AXIS, "return_tensors": "pt", **({"do_resize": False} if resized else {})}
    return {**how, "do_rescale": False, "do_normalize": False} if _fuses(process) else how


def _scale(process: Any, key: str) -> dict[str, Tensor]:
    """Mean and standard deviation [1, 2, 3] on the scale of bytes, as transformers fuses them with its own rescaling.

    A processor that does something else has no scale, and its patches are ready for the tower.
    """
    if not _fuses(process):
        return {}
    scale = torch.tensor([[process.image_mean, process.image_std]], dtype=torch.float32)
    return {key: scale * (1.0 / process.rescale_factor)}


def normalized(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Media as transformers' processors give them: patches of bytes with a scale become float32, the rest stays.

    (byte - mean) / deviation, in this order: the result equals the processor's own to the last bit.
    """
    found = {key: tensor for key, tensor in tensors.items() if key not in _SCALES.values()}
    for grid, scale in _SCALES.items():
        if scale in tensors:
            pixels = tensors[_PIXELS[grid]]
            # Given the number of patches, a GPU need not wait for the sum.
            each = tensors[scale].repeat_interleave(tensors[grid].prod(-1), dim=0, output_size=len(pixels))
            mean, deviation = each.unsqueeze(-1).unbind(1)
            colors = pixels.unflatten(1, (mean.shape[1], -1)).to(torch.float32)
            found[_PIXELS[grid]] = colors.sub_(mean).div_(deviation).flatten(1)
    return found


# Grey media have a size that the processor chose already; resizing a second time may choose another.
@lru_cache(maxsize=16)
def _grey_image(image_processor: Any, height: int, width: int) -> Tensor:
    grey = np.full((height, width, 3), 128, dtype=np.uint8)
    return image_processor(images=[grey], **_how(image_processor, resized=True))[IMAGE_PIXELS]


@lru_cache(maxsize=16)
def _grey_video(video_processor: Any, num_frames: int, height: int, width: int) -> Tensor:
    grey = np.full((num_frames, height, width, 3), 128, dtype=np.uint8)
    return video_processor(videos=[grey], do_sample_frames=False, **_how(video_processor, resized=True))[VIDEO_PIXELS]


class QwenVisionBackbone(FamilyBackbone):
    """A loaded model with a vision tower."""

    text_at = "model.language_model"
    towers_at: ClassVar[Mapping[str, str]] = {"vision": "model.visual"}
    projectors_at: ClassVar[Mapping[str, Sequence[str]]] = {"vision": ("model.visual.merger",)}

    def media_features(self, media: MediaInputs) -> dict[str, Tensor]:
        """Runs the tower once over all pictures and clips; returns rows [tokens, width] in prompt order, keyed by kind.

        Raises:
            MediaError: The tower returned rows of more or fewer media than it was given.
        """
        grids = {kind: key for kind, key in VISION_KEYS.items() if key in media.tensors}
        if not grids:
            return {}
        tensors = self.model_inputs(media)
        pixels = torch.cat([tensors[_PIXELS[key]] for key in grids.values()])
        grid = torch.cat([media.tensors[key] for key in grids.values()])
        rows = list(self.tower_rows(self.model.get_image_features(pixels, grid, return_dict=True)))
        if len(rows) != len(grid):
            raise MediaError(f"the vision tower made feature rows of {len(rows)} media out of {len(grid)}")
        found, place = {}, 0
        for kind, key in grids.items():
            number = len(media.tensors[key])
            found[kind] = torch.cat(rows[place : place + number])
            place += number
        return found

    def model_inputs(self, media: MediaInputs) -> Mapping[str, Tensor]:
        """The media's tensors with normalized patches."""
        return normalized(media.tensors)

    def tower_rows(self, output: Any) -> Sequence[Tensor]:
        """The feature rows of each medium, taken out of the tower's output."""
        return output.pooler_output

    def minimal_media(self, kind: MediaKind) -> dict[str, Tensor]:
        """A picture or clip of the mean color that makes one feature row; it is normalized already."""
        config = self.model.config.vision_config
        grid = torch.tensor([[1, config.spatial_merge_size, config.spatial_merge_size]])
        width = config.in_channels * config.temporal_patch_size * config.patch_size**2
        grid_key = VISION_KEYS[kind]
        return {_PIXELS[grid_key]: torch.zeros(int(grid.prod()), width), grid_key: grid}

    def feature_rows(self, media: MediaInputs) -> dict[str, Tensor]:
        """How many feature rows the tower will make of every picture and clip: one for each square of patches."""
        square = self.model.config.vision_config.spatial_merge_size**2
        grids = {kind: media.tensors[key] for kind, key in VISION_KEYS.items() if key in media.tensors}
        return {kind: grid.prod(-1) // square for kind, grid in grids.items()}
