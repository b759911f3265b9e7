"""What the Qwen families share: pictures and clips as patches, placeholders, chat rendering and loading."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from lightning_mmrl.errors import MediaError, MmrlError, StageError
from lightning_mmrl.models.folder import NO_CODE, check_settings
from lightning_mmrl.prompts.template import media_tags
from lightning_mmrl.types.media import DecodedImage, DecodedVideo
from lightning_mmrl.types.records import MediaKind

AUDIO_FEATURES, AUDIO_MASK = "input_features", "feature_attention_mask"
IMAGE_PIXELS, IMAGE_GRID = "pixel_values", "image_grid_thw"
VIDEO_PIXELS, VIDEO_GRID, VIDEO_SECONDS = "pixel_values_videos", "video_grid_thw", "video_second_per_grid"
KINDS: tuple[MediaKind, ...] = ("image", "video", "audio")
MEDIUM_KEYS: Mapping[MediaKind, str] = {"image": IMAGE_GRID, "video": VIDEO_GRID, "audio": AUDIO_MASK}
"""For each kind, the key of an encoded medium that has one row."""
VIDEO_TIMES = "video_timestamps"
TIMES = frozenset({VIDEO_SECONDS, VIDEO_TIMES})
"""Keys that positions and text need, and no tower."""
_VISION_KEYS = {"image": (IMAGE_PIXELS, IMAGE_GRID), "video": (VIDEO_PIXELS, VIDEO_GRID)}

ENCODING = 2
"""Version of what processors are given: a part of cache keys, which counts up when the same media give other inputs."""
CHANNEL_AXIS = "channels_last"
"""Of decoded pictures; a processor that is not told takes 3 rows for the three colors."""

Encoded = Mapping[str, Tensor]
"""One medium as tensors."""

Config = TypeVar("Config", bound=PreTrainedConfig)


@contextmanager
def loading(checkpoint: str | Path, what: str) -> Iterator[None]:
    """Turns what transformers raises for a missing or broken checkpoint into one sentence.

    Files of others are parsed there, and may hold anything.

    Raises:
        StageError: The checkpoint cannot be loaded.
    """
    try:
        yield
    except (MmrlError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        missing = Path(checkpoint).is_absolute() and not Path(checkpoint).exists()
        reason = "there is no such folder" if missing else str(error).strip().partition("\n")[0]
        raise StageError(
            f"{what} of {str(checkpoint)!r} cannot be loaded ({reason}); "
            "model.checkpoint must be a Hugging Face folder or a hub id that is reachable or cached"
        ) from error


def load_config(checkpoint: str | Path) -> PreTrainedConfig:
    """The configuration of a folder or hub id, whatever its family."""
    with loading(checkpoint, "model configuration"):
        check_settings(checkpoint)
        return AutoConfig.from_pretrained(checkpoint, **NO_CODE)


def require_family(config: PreTrainedConfig, wanted: type[Config], checkpoint: str | Path, family: str) -> Config:
    """The configuration as one of the wanted family.

    Raises:
        StageError: It is of another family.
    """
    if not isinstance(config, wanted):
        raise StageError(
            f"model checkpoint {str(checkpoint)!r} holds a {config.model_type} model, not {family}; "
            "choose the model preset of its family"
        )
    return config


def load_eos_ids(checkpoint: str | Path) -> tuple[int, ...]:
    """Ids that end a completion, from the checkpoint's generation config; the first one closes targets."""
    with loading(checkpoint, "generation config"):
        eos = GenerationConfig.from_pretrained(checkpoint).eos_token_id
    return tuple(eos) if isinstance(eos, list) else (eos,)


def unreadable(family: str, kinds: Iterable[MediaKind], kind: MediaKind) -> MediaError:
    """What to raise for a medium of a kind that a family does not read."""
    reads = ", ".join(["text", *sorted(kinds)]) if kinds else "text alone"
    return MediaError(
        f"{family} reads {reads}, not {kind}; choose a model that reads {kind} or leave the <{kind}> media out"
    )


def fingerprint(parts: Iterable[Any]) -> str:
    """Hash of the settings of the processors that turn media into tensors."""
    state = json.dumps([ENCODING, *(part.to_dict() for part in parts)], sort_keys=True, default=str)
    return hashlib.sha256(state.encode()).hexdigest()[:16]


def banned_ids(tokenizer: Any, media_ids: Iterable[int], vocab_size: int) -> tuple[int, ...]:
    """Ids that must never be sampled: those of media, and head rows without a token."""
    return tuple(sorted({*media_ids, *range(len(tokenizer), vocab_size)}))


def encode_image(image_processor: Any, image: DecodedImage) -> dict[str, Tensor]:
    """Patches [patches, features] and grid [1, 3] of one picture."""
    out = image_processor(images=[image.pixels], input_data_format=CHANNEL_AXIS, return_tensors="pt")
    return {IMAGE_PIXELS: out[IMAGE_PIXELS], IMAGE_GRID: out[IMAGE_GRID]}


def encode_video(video_processor: Any, video: DecodedVideo) -> dict[str, Tensor]:
    """Patches [patches, features], grid [1, 3] and seconds per temporal patch [1] of one clip."""
    out = video_processor(
        videos=[video.frames], input_data_format=CHANNEL_AXIS, do_sample_frames=False, return_tensors="pt"
    )
    seconds = video_processor.temporal_patch_size / video.sampled_fps
    return {
        VIDEO_PIXELS: out[VIDEO_PIXELS],
        VIDEO_GRID: out[VIDEO_GRID],
        VIDEO_SECONDS: torch.tensor([seconds], dtype=torch.float32),
    }


def blank_image(image_processor: Any, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A picture of the same size, uniformly grey: what a model sees when the picture is missing."""
    _, height, width = encoded[IMAGE_GRID][0].tolist()
    patch = image_processor.patch_size
    return {**encoded, IMAGE_PIXELS: _grey_image(image_processor, height * patch, width * patch)}


def blank_video(video_processor: Any, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same clip with every frame uniformly grey."""
    frames, height, width = encoded[VIDEO_GRID][0].tolist()
    patch, temporal = video_processor.patch_size, video_processor.temporal_patch_size
    return {**encoded, VIDEO_PIXELS: _grey_video(video_processor, frames * temporal, height * patch, width * patch)}


# Grey media have a size that the processor chose already; resizing a second time may choose another.
@lru_cache(maxsize=16)
def _grey_image(image_processor: Any, height: int, width: int) -> Tensor:
    grey = np.full((height, width, 3), 128, dtype=np.uint8)
    out = image_processor(images=[grey], input_data_format=CHANNEL_AXIS, do_resize=False, return_tensors="pt")
    return out[IMAGE_PIXELS]


@lru_cache(maxsize=16)
def _grey_video(video_processor: Any, num_frames: int, height: int, width: int) -> Tensor:
    grey = np.full((num_frames, height, width, 3), 128, dtype=np.uint8)
    how = {"input_data_format": CHANNEL_AXIS, "do_resize": False, "do_sample_frames": False, "return_tensors": "pt"}
    return video_processor(videos=[grey], **how)[VIDEO_PIXELS]


def tower_inputs(media: Sequence[Encoded]) -> dict[str, Tensor]:
    """What the towers take of one prompt's media, each key concatenated along its first axis in prompt order."""
    keys = dict.fromkeys(key for item in media for key in item if key not in TIMES)
    return {key: _cat_frames([item[key] for item in media if key in item]) for key in keys}


def _cat_frames(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenates along the first axis; a ragged last axis (audio frames) is right-padded with zeros."""
    if len(tensors) == 1:
        return tensors[0]
    if tensors[0].dim() < 2 or len({tensor.shape[-1] for tensor in tensors}) == 1:
        return torch.cat(list(tensors))
    width = max(tensor.shape[-1] for tensor in tensors)
    return torch.cat([nn.functional.pad(tensor, (0, width - tensor.shape[-1])) for tensor in tensors])


def content_parts(content: str) -> list[dict[str, str]]:
    """A turn's text split at its media tags, as chat templates expect it.

    >>> content_parts("<image>How many?")
    [{'type': 'image'}, {'type': 'text', 'text': 'How many?'}]
    """
    parts: list[dict[str, str]] = []
    rest = content
    for kind in media_tags(content):
        before, rest = rest.split(f"<{kind}>", 1)
        if before:
            parts.append({"type": "text", "text": before})
        parts.append({"type": kind})
    if rest:
        parts.append({"type": "text", "text": rest})
    return parts


def placeholder_ids(config: Any, kinds: Collection[MediaKind]) -> dict[MediaKind, int]:
    """Token id that stands for one feature row of each kind."""
    return {kind: getattr(config, f"{kind}_token_id") for kind in KINDS if kind in kinds}


def by_kind(text: str, tokens: Mapping[MediaKind, str], media: Sequence[Encoded]) -> dict[MediaKind, Iterator[Encoded]]:
    """The media of each kind in order, held against the media tokens of a rendered conversation.

    Raises:
        MediaError: The tokens of a kind are not one for each medium.
    """
    waiting: dict[MediaKind, Iterator[Encoded]] = {}
    for kind, token in tokens.items():
        items = [item for item in media if MEDIUM_KEYS[kind] in item]
        if (found := text.count(token)) != len(items):
            raise MediaError(
                f"a prompt has {found} {token} tokens for {len(items)} media; mark each medium with its tag"
            )
        waiting[kind] = iter(items)
    return waiting


def taken(waiting: Mapping[MediaKind, Iterator[Encoded]], kind: MediaKind) -> Encoded:
    """The next of the media that `by_kind` found.

    Raises:
        MediaError: None of this kind is left.
    """
    medium = next(waiting[kind], None)
    if medium is None:
        raise MediaError(f"a prompt has more places for <{kind}> media than media; mark each medium with its tag once")
    return medium


def vision_features(
    model: Any, tensors: Mapping[str, Tensor], rows_of: Callable[[Any], Iterable[Tensor]]
) -> dict[str, Tensor]:
    """Runs the vision tower once over all pictures and clips of the batch; rows [tokens, width], keyed by kind.

    `rows_of` takes the rows of each medium out of what the tower returned.

    Raises:
        MediaError: The tower returned rows of more or fewer media than it was given.
    """
    present = {kind: keys for kind, keys in _VISION_KEYS.items() if keys[0] in tensors}
    if not present:
        return {}
    pixels = torch.cat([tensors[pixels] for pixels, _ in present.values()])
    grid = torch.cat([tensors[grid] for _, grid in present.values()])
    rows = list(rows_of(model.get_image_features(pixels, grid, return_dict=True)))
    if len(rows) != len(grid):
        raise MediaError(f"the vision tower made feature rows of {len(rows)} media out of {len(grid)}")
    found, place = {}, 0
    for kind, (_, grid_key) in present.items():
        number = len(tensors[grid_key])
        found[kind] = torch.cat(rows[place : place + number])
        place += number
    return found
