"""The Qwen2.5-Omni thinker: text, image, video and audio in, text out.

The encoder repeats the four steps of `Qwen2_5OmniProcessor.__call__` (video processor, feature extractor, placeholder
expansion, tokenizer) with its own parts, so that each medium is processed once and cached; a test holds the result
equal to the processor's own. Two defaults of the processor are left out: padding every sound to the feature
extractor's full window (300 s for the released models), and 128 visual tokens per frame pair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from transformers import (
    Qwen2_5OmniConfig,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
)
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniPreTrainedModelForConditionalGeneration

from lightning_mmrl.errors import MediaError
from lightning_mmrl.models.families import qwen_media
from lightning_mmrl.models.families.backbone import QwenBackbone, audio_rows, vision_rows
from lightning_mmrl.models.families.qwen_media import IMAGE_GRID, VIDEO_GRID, VIDEO_SECONDS
from lightning_mmrl.types.batches import MediaInputs
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, DecodedVideo
from lightning_mmrl.types.records import MediaKind, Message

AUDIO_FEATURES, AUDIO_MASK = "input_features", "feature_attention_mask"


class _RopeIndex(Qwen2_5OmniPreTrainedModelForConditionalGeneration):
    """The thinker's position-id method without its weights."""

    def __init__(self, config: Qwen2_5OmniThinkerConfig) -> None:
        super().__init__(config)
        self.spatial_merge_size = cast(Any, config.vision_config).spatial_merge_size


@dataclass(frozen=True)
class OmniEncoder:
    """Turns messages and decoded media into model inputs with the checkpoint's own processor and chat template."""

    family: ClassVar[str] = "Qwen2.5-Omni"
    kinds: ClassVar[frozenset[MediaKind]] = frozenset({"image", "video", "audio"})

    processor: Qwen2_5OmniProcessor
    config: Qwen2_5OmniThinkerConfig
    eos_token_ids: tuple[int, ...]
    _rope: _RopeIndex = field(repr=False)

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path) -> "OmniEncoder":
        """Loads the processor, the configuration and the end-of-sequence ids; no weights."""
        config = load_config(checkpoint)
        with qwen_media.loading(checkpoint, "processor"):
            processor = Qwen2_5OmniProcessor.from_pretrained(checkpoint)
        eos_ids = qwen_media.load_eos_ids(checkpoint)
        return cls(processor=processor, config=config, eos_token_ids=eos_ids, _rope=_RopeIndex(config))

    @property
    def pad_token_id(self) -> int:
        """Id that fills padding."""
        return self.processor.tokenizer.pad_token_id

    @property
    def fingerprint(self) -> str:
        """Hash of everything that changes encoded media: part of the cache key."""
        processor = self.processor
        return qwen_media.fingerprint(
            (processor.video_processor, processor.image_processor, processor.feature_extractor)
        )

    def banned_token_ids(self) -> tuple[int, ...]:
        """Ids that must never be sampled: media placeholders and head rows without a token."""
        tokenizer = self.processor.tokenizer
        names = ("image_token", "audio_token", "video_token", "vision_bos_token", "vision_eos_token")
        names += ("audio_bos_token", "audio_eos_token")
        media = {tokenizer.convert_tokens_to_ids(getattr(self.processor, name)) for name in names}
        return qwen_media.banned_ids(tokenizer, media, cast(Any, self.config.text_config).vocab_size)

    @property
    def media_kinds(self) -> frozenset[MediaKind]:
        """What the model reads beside text."""
        return self.kinds

    def encode_image(self, image: DecodedImage) -> dict[str, Tensor]:
        """Patches [patches, features] and grid [1, 3] of one picture."""
        return qwen_media.encode_image(self.processor.image_processor, image)

    def encode_video(self, video: DecodedVideo) -> dict[str, Tensor]:
        """Patches [patches, features], grid [1, 3] and seconds per temporal patch [1] of one clip."""
        return qwen_media.encode_video(self.processor.video_processor, video)

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
        return qwen_media.blank_image(self.processor.image_processor, encoded)

    def blank_video(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same clip with every frame uniformly grey."""
        return qwen_media.blank_video(self.processor.video_processor, encoded)

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
        stacked = qwen_media.stack_media(media)
        text = qwen_media.render_chat(self.processor, messages) + prefill
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
        return qwen_media.prompt_tensors(ids, positions, stacked)

    def encode_target(self, text: str) -> list[int]:
        """Token ids of an assistant turn, closed by the end-of-sequence token."""
        return [*self.processor.tokenizer(text).input_ids, self.eos_token_ids[0]]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of sampled tokens, without special tokens."""
        return self.processor.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def _expand(self, text: str, media: Mapping[str, Tensor]) -> str:
        audio_lengths = audio_rows(media[AUDIO_MASK]) if AUDIO_MASK in media else ()
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


class OmniThinker(QwenBackbone):
    """What a policy needs to know of a loaded thinker: its parts, and how media become embeddings."""

    text_at = "model"
    towers_at: ClassVar[Mapping[str, str]] = {"vision": "visual", "audio": "audio_tower"}
    medium_keys: ClassVar[Mapping[MediaKind, str]] = {"image": IMAGE_GRID, "video": VIDEO_GRID, "audio": AUDIO_MASK}

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path, *, dtype: torch.dtype = torch.float32) -> "OmniThinker":
        """Loads the weights of a local folder or hub id; a full Qwen2.5-Omni checkpoint gives its thinker."""
        load_config(checkpoint)
        with qwen_media.loading(checkpoint, "model checkpoint"):
            model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype)
        return cls(model)

    @classmethod
    def on_meta(cls, config: Qwen2_5OmniThinkerConfig) -> "OmniThinker":
        """The architecture without weights, for checks of sizes and parameter groups."""
        with torch.device("meta"):
            return cls(Qwen2_5OmniThinkerForConditionalGeneration(config))

    @property
    def placeholder_ids(self) -> dict[str, int]:
        """Token id that stands for one feature row of each media kind."""
        config = self.model.config
        return {"image": config.image_token_id, "video": config.video_token_id, "audio": config.audio_token_id}

    def media_features(self, media: MediaInputs) -> dict[str, Tensor]:
        """Runs each tower once over all media of the batch; rows [tokens, hidden] in prompt order, keyed by kind."""
        features = qwen_media.vision_features(self.model, media.tensors)
        if AUDIO_FEATURES in media.tensors:
            waves, mask = media.tensors[AUDIO_FEATURES], media.tensors[AUDIO_MASK]
            features["audio"] = (
                cast(Any, self.model).get_audio_features(waves, mask, return_dict=True).last_hidden_state
            )
        return features

    def feature_rows(self, media: MediaInputs) -> dict[str, Tensor]:
        """How many feature rows the towers will make of every picture, clip and sound."""
        rows = vision_rows(media, self.model.config.vision_config.spatial_merge_size)
        if AUDIO_MASK in media.tensors:
            rows["audio"] = audio_rows(media.tensors[AUDIO_MASK])
        return rows


def load_config(checkpoint: str | Path) -> Qwen2_5OmniThinkerConfig:
    """The thinker's configuration, also out of a full Qwen2.5-Omni checkpoint."""
    config = qwen_media.load_config(checkpoint)
    if isinstance(config, Qwen2_5OmniConfig):
        return cast(Qwen2_5OmniThinkerConfig, config.thinker_config)
    return qwen_media.require_family(config, Qwen2_5OmniThinkerConfig, checkpoint, OmniEncoder.family)
