"""The Qwen2.5-Omni thinker: text, image, video and audio in, text out.

The encoder repeats the four steps of `Qwen2_5OmniProcessor.__call__` (video processor, feature extractor, placeholder
expansion, tokenizer) with its own parts, so that each medium is processed once and cached; a test holds the result
equal to the processor's own. Two defaults of the processor are left out: padding every sound to the feature
extractor's full window (300 s for the released models), and 128 visual tokens per frame pair.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    GenerationConfig,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
)
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniPreTrainedModelForConditionalGeneration

from lightning_mmrl.errors import MediaError, StageError
from lightning_mmrl.prompts.template import media_tags
from lightning_mmrl.types.batches import MediaInputs
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, DecodedVideo
from lightning_mmrl.types.records import MediaKind, Message

IMAGE_PIXELS, IMAGE_GRID = "pixel_values", "image_grid_thw"
VIDEO_PIXELS, VIDEO_GRID, VIDEO_SECONDS = "pixel_values_videos", "video_grid_thw", "video_second_per_grid"
PIXELS = {"image": IMAGE_PIXELS, "video": VIDEO_PIXELS}
AUDIO_FEATURES, AUDIO_MASK = "input_features", "feature_attention_mask"


class _RopeIndex(Qwen2_5OmniPreTrainedModelForConditionalGeneration):
    """The thinker's position-id method without its weights."""

    def __init__(self, config: Qwen2_5OmniThinkerConfig) -> None:
        super().__init__(config)
        self.spatial_merge_size = cast(Any, config.vision_config).spatial_merge_size


@dataclass(frozen=True)
class OmniEncoder:
    """Turns messages and decoded media into model inputs with the checkpoint's own processor and chat template."""

    processor: Qwen2_5OmniProcessor
    config: Qwen2_5OmniThinkerConfig
    eos_token_ids: tuple[int, ...]
    _rope: _RopeIndex = field(repr=False)

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path) -> "OmniEncoder":
        """Loads the processor, the configuration and the end-of-sequence ids; no weights."""
        config = load_config(checkpoint)
        processor = Qwen2_5OmniProcessor.from_pretrained(checkpoint)
        eos = GenerationConfig.from_pretrained(checkpoint).eos_token_id
        eos_ids = tuple(eos) if isinstance(eos, list) else (eos,)
        return cls(processor=processor, config=config, eos_token_ids=eos_ids, _rope=_RopeIndex(config))

    @property
    def pad_token_id(self) -> int:
        """Id that fills padding."""
        return self.processor.tokenizer.pad_token_id

    @property
    def fingerprint(self) -> str:
        """Hash of everything that changes encoded media: part of the cache key."""
        parts = (self.processor.video_processor, self.processor.image_processor, self.processor.feature_extractor)
        state = json.dumps([part.to_dict() for part in parts], sort_keys=True, default=str)
        return hashlib.sha256(state.encode()).hexdigest()[:16]

    def banned_token_ids(self) -> tuple[int, ...]:
        """Ids that must never be sampled: media placeholders and head rows without a token."""
        tokenizer = self.processor.tokenizer
        names = ("image_token", "audio_token", "video_token", "vision_bos_token", "vision_eos_token")
        names += ("audio_bos_token", "audio_eos_token")
        media = {tokenizer.convert_tokens_to_ids(getattr(self.processor, name)) for name in names}
        unused = range(len(tokenizer), cast(Any, self.config.text_config).vocab_size)
        return tuple(sorted(media | set(unused)))

    @property
    def media_kinds(self) -> frozenset[MediaKind]:
        """What the model reads beside text."""
        return frozenset({"image", "video", "audio"})

    def encode_image(self, image: DecodedImage) -> dict[str, Tensor]:
        """Patches [patches, features] and grid [1, 3] of one picture."""
        out = self.processor.image_processor(images=[image.pixels], return_tensors="pt")
        return {IMAGE_PIXELS: out[IMAGE_PIXELS], IMAGE_GRID: out[IMAGE_GRID]}

    def encode_video(self, video: DecodedVideo) -> dict[str, Tensor]:
        """Patches [patches, features], grid [1, 3] and seconds per temporal patch [1] of one clip."""
        out = self.processor.video_processor(videos=[video.frames], return_tensors="pt")
        seconds = self.processor.video_processor.temporal_patch_size / video.sampled_fps
        return {
            VIDEO_PIXELS: out[VIDEO_PIXELS],
            VIDEO_GRID: out[VIDEO_GRID],
            VIDEO_SECONDS: torch.tensor([seconds], dtype=torch.float32),
        }

    def encode_audio(self, audio: DecodedAudio) -> dict[str, Tensor]:
        """Log-mel features [1, mel bins, frames] and their mask [1, frames], without padding to the full window.

        The processor pads with zeros to its window before the spectrogram; one analysis window of zeros gives the same
        valid frames.
        """
        extractor = self.processor.feature_extractor
        num_samples = len(audio.waveform)
        if num_samples > extractor.n_samples:
            limit = extractor.n_samples / extractor.sampling_rate
            raise MediaError(
                f"sound of {audio.duration_s:.2f} s is longer than the model's audio window of {limit:.2f} s; "
                "cut it with start/end in the manifest"
            )
        num_frames = -(-num_samples // extractor.hop_length)
        padded = np.zeros(num_samples + 2 * extractor.n_fft, dtype=np.float32)
        padded[:num_samples] = audio.waveform
        out = extractor(padded, sampling_rate=audio.sample_rate_hz, padding="longest", return_tensors="pt")
        features = out[AUDIO_FEATURES][:, :, :num_frames].contiguous()
        return {AUDIO_FEATURES: features, AUDIO_MASK: torch.ones(1, num_frames, dtype=torch.int32)}

    def blank_image(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A picture of the same size, uniformly grey: what the model sees when the picture is missing."""
        _, height, width = encoded[IMAGE_GRID][0].tolist()
        patch = self.processor.image_processor.patch_size
        return {**encoded, IMAGE_PIXELS: _grey_image(self.processor.image_processor, height * patch, width * patch)}

    def blank_video(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same clip with every frame uniformly grey: what the model sees when the picture is missing."""
        frames, height, width = encoded[VIDEO_GRID][0].tolist()
        patch = self.processor.video_processor.patch_size
        temporal = self.processor.video_processor.temporal_patch_size
        pixels = _grey_pixels(self.processor.video_processor, frames * temporal, height * patch, width * patch)
        return {**encoded, VIDEO_PIXELS: pixels}

    def silent_audio(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same sound with every sample zero."""
        num_frames = int(encoded[AUDIO_MASK].sum())
        extractor = self.processor.feature_extractor
        silence = np.zeros(num_frames * extractor.hop_length, dtype=np.float32)
        return self.encode_audio(DecodedAudio(waveform=silence, sample_rate_hz=extractor.sampling_rate))

    def encode_prompt(
        self, messages: Sequence[Message], prefill: str, media: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """One prompt: token ids [P], position ids [3, P], the next position [1], and its media's tensors.

        Args:
            messages: Turns that end with a user turn; tags mark where media go.
            prefill: Opening of the assistant turn that the prompt already contains.
            media: Encoded media in the order of the tags.
        """
        stacked = _stack_media(media)
        text = self._render(messages) + prefill
        text = self._expand(text, stacked)
        ids = self.processor.tokenizer(text, return_tensors="pt").input_ids
        rope = cast(Any, self._rope)
        positions, _ = rope.get_rope_index(
            input_ids=ids,
            image_grid_thw=stacked.get(IMAGE_GRID),
            video_grid_thw=stacked.get(VIDEO_GRID),
            attention_mask=torch.ones_like(ids),
            audio_seqlens=stacked[AUDIO_MASK].sum(-1) if AUDIO_MASK in stacked else None,
            second_per_grids=stacked.get(VIDEO_SECONDS),
        )
        positions = positions[:, 0].long()
        return {
            "input_ids": ids[0],
            "position_ids": positions,
            "next_position": positions.max().reshape(1) + 1,
            **{key: value for key, value in stacked.items() if key != VIDEO_SECONDS},
        }

    def encode_target(self, text: str) -> list[int]:
        """Token ids of an assistant turn, closed by the end-of-sequence token."""
        return [*self.processor.tokenizer(text).input_ids, self.eos_token_ids[0]]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of sampled tokens, without special tokens."""
        return self.processor.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def _render(self, messages: Sequence[Message]) -> str:
        chat = [{"role": turn.role, "content": _content_parts(turn.content)} for turn in messages]
        return self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)

    def _expand(self, text: str, media: Mapping[str, Tensor]) -> str:
        lengths = media[AUDIO_MASK].sum(-1) if AUDIO_MASK in media else torch.zeros(0, dtype=torch.long)
        audio_lengths = (((lengths - 1) // 2 + 1) - 2) // 2 + 1
        empty = torch.zeros(0, 3, dtype=torch.long)
        [expanded] = self.processor.replace_multimodal_special_tokens(
            [text],
            iter(audio_lengths),
            iter(media.get(IMAGE_GRID, empty)),
            iter(media.get(VIDEO_GRID, empty)),
            video_second_per_grid=iter(media.get(VIDEO_SECONDS, ())),
            use_audio_in_video=False,
            position_id_per_seconds=self.config.position_id_per_seconds,
            seconds_per_chunk=self.config.seconds_per_chunk,
        )
        return expanded


@lru_cache(maxsize=16)
def _grey_image(image_processor: Any, height: int, width: int) -> Tensor:
    grey = np.full((height, width, 3), 128, dtype=np.uint8)
    # The size is already one that the processor chose; resizing a second time may choose another.
    return image_processor(images=[grey], do_resize=False, return_tensors="pt")[IMAGE_PIXELS]


@lru_cache(maxsize=16)
def _grey_pixels(video_processor: Any, num_frames: int, height: int, width: int) -> Tensor:
    grey = np.full((num_frames, height, width, 3), 128, dtype=np.uint8)
    return video_processor(videos=[grey], do_resize=False, return_tensors="pt")[VIDEO_PIXELS]


def _content_parts(content: str) -> list[dict[str, str]]:
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


def _stack_media(media: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    keys = dict.fromkeys(key for item in media for key in item)
    return {key: _cat_frames([item[key] for item in media if key in item]) for key in keys}


def _cat_frames(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenates along the first axis; a ragged last axis (audio frames) is right-padded with zeros."""
    if tensors[0].dim() < 2 or len({tensor.shape[-1] for tensor in tensors}) == 1:
        return torch.cat(list(tensors))
    width = max(tensor.shape[-1] for tensor in tensors)
    return torch.cat([nn.functional.pad(tensor, (0, width - tensor.shape[-1])) for tensor in tensors])


class OmniThinker:
    """What a policy needs to know of a loaded thinker: its parts, and how media become embeddings."""

    def __init__(self, model: Qwen2_5OmniThinkerForConditionalGeneration) -> None:
        self.model = model

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path, *, dtype: torch.dtype = torch.float32) -> "OmniThinker":
        """Loads the weights of a local folder or hub id; a full Qwen2.5-Omni checkpoint gives its thinker."""
        try:
            model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype)
        except OSError as error:
            raise StageError(f"model checkpoint {str(checkpoint)!r} cannot be loaded: {error}") from error
        return cls(model)

    @classmethod
    def on_meta(cls, config: Qwen2_5OmniThinkerConfig) -> "OmniThinker":
        """The architecture without weights, for checks of sizes and parameter groups."""
        with torch.device("meta"):
            return cls(Qwen2_5OmniThinkerForConditionalGeneration(config))

    @property
    def text_model(self) -> nn.Module:
        """The decoder without its head."""
        return self.model.model

    @property
    def head(self) -> nn.Module:
        """The linear layer from hidden states to logits."""
        return self.model.lm_head

    @property
    def towers(self) -> list[nn.Module]:
        """The vision and audio encoders with their projectors."""
        return [self.model.visual, self.model.audio_tower]

    @property
    def parameter_groups(self) -> Mapping[str, tuple[str, ...]]:
        """Parameter name prefixes that `freeze` selects; projectors belong to their towers."""
        return {"vision": ("visual.",), "audio": ("audio_tower.",), "text": ("model.", "lm_head.")}

    @property
    def placeholder_ids(self) -> dict[str, int]:
        """Token id that stands for one feature row of each media kind."""
        config = self.model.config
        return {"image": config.image_token_id, "video": config.video_token_id, "audio": config.audio_token_id}

    def media_features(self, media: MediaInputs) -> dict[str, Tensor]:
        """Runs each tower once over all media of the batch; rows [tokens, hidden] in prompt order, keyed by kind."""
        features = {}
        tensors, model = media.tensors, cast(Any, self.model)
        features |= vision_features(model, tensors)
        if AUDIO_FEATURES in tensors:
            out = model.get_audio_features(tensors[AUDIO_FEATURES], tensors[AUDIO_MASK], return_dict=True)
            features["audio"] = out.last_hidden_state
        return features


def vision_features(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Runs the vision tower once over all pictures and clips of the batch; rows [tokens, hidden], keyed by kind."""
    grids = {"image": tensors.get(IMAGE_GRID), "video": tensors.get(VIDEO_GRID)}
    present = {kind: grid for kind, grid in grids.items() if grid is not None}
    if not present:
        return {}
    pixels = torch.cat([tensors[PIXELS[kind]] for kind in present])
    out = model.get_image_features(pixels, torch.cat(list(present.values())), return_dict=True)
    rows = iter(out.pooler_output)
    return {kind: torch.cat([next(rows) for _ in grid]) for kind, grid in present.items()}


def load_config(checkpoint: str | Path) -> Qwen2_5OmniThinkerConfig:
    """The thinker's configuration, also out of a full Qwen2.5-Omni checkpoint."""
    try:
        config = AutoConfig.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise StageError(f"model configuration of {str(checkpoint)!r} cannot be loaded: {error}") from error
    return config if isinstance(config, Qwen2_5OmniThinkerConfig) else config.thinker_config
