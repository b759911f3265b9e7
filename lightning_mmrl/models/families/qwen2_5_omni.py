"""The Qwen2.5-Omni thinker: text, image, video and audio in, text out.

The encoder takes the four steps of `Qwen2_5OmniProcessor.__call__` (video processor, feature extractor, placeholder
expansion, tokenizer) one by one, so that each medium is processed once and cached. A test compares the result with the
processor's own. Two defaults of the processor are dropped: padding every sound to the feature extractor's full window
(300 s for the released models), and 128 visual tokens per frame pair.

A clip and its sound may be one medium whose tokens alternate every 2 s, if the tag of the sound directly follows the
tag of the clip (`use_audio_in_video` of the processor). The times that decide on a token's turn are float32 here, like
positions. The processor's times are float64; at some odd frame rates it therefore puts a frame pair that starts at a
multiple of 2 s into the other turn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import (
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from lightning_mmrl.errors import MediaError
from lightning_mmrl.models.families.backbone import LayerKinds
from lightning_mmrl.models.families.encoder import Encoded
from lightning_mmrl.models.families.family import Family
from lightning_mmrl.models.families.media_keys import AUDIO_FEATURES, AUDIO_MASK, VIDEO_GRID, VIDEO_SECONDS
from lightning_mmrl.models.families.places import Waiting, next_medium
from lightning_mmrl.models.families.qwen_vision import VISION_KEYS, QwenVisionBackbone, QwenVisionEncoder
from lightning_mmrl.models.loading import load_config, require_family
from lightning_mmrl.models.positions import MediaLayout, Span, time_clock
from lightning_mmrl.settings.model import PositionRule
from lightning_mmrl.types.batches import MediaInputs
from lightning_mmrl.types.media import DecodedAudio
from lightning_mmrl.types.records import MediaKind


class ThinkerFamily(Family):
    """The thinker, whose released checkpoints hold more than itself."""

    def load_config(self, checkpoint: str | Path) -> Any:
        """The thinker's configuration, also taken out of a full Qwen2.5-Omni checkpoint."""
        config = load_config(checkpoint)
        if isinstance(config, Qwen2_5OmniConfig):
            return config.thinker_config
        return require_family(config, self.config, checkpoint, self.name)

    def engine_config(self, config: Any) -> Any:
        """The configuration of a full Qwen2.5-Omni with this thinker; its talker is never built."""
        part = {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}  # as save_pretrained
        whole = Qwen2_5OmniConfig(thinker_config=part, enable_audio_output=False)
        whole.architectures = ["Qwen2_5OmniForConditionalGeneration"]
        return whole

    def released(self, model: Any) -> Any:
        """A full Qwen2.5-Omni without a talker around this thinker; it takes no memory of its own."""
        config = self.engine_config(model.config)
        config.thinker_config.architectures = [type(model).__name__]
        with torch.device("meta"):
            whole = Qwen2_5OmniForConditionalGeneration(config)
        whole.thinker, whole.generation_config = model, model.generation_config
        return whole


def layout(config: Any, rule: PositionRule) -> MediaLayout:
    """25 positions a second in the released checkpoints, for clips and for sound; text continues after both."""
    return MediaLayout(
        rule=rule,
        merge_size=config.vision_config.spatial_merge_size,
        clock=partial(time_clock, per_second=config.position_id_per_seconds),
        stock_counts_time=True,
        chunk=int(config.position_id_per_seconds * config.seconds_per_chunk),
    )


FAMILY = ThinkerFamily(
    name="Qwen2.5-Omni",
    config=Qwen2_5OmniThinkerConfig,
    processor=Qwen2_5OmniProcessor,
    model=Qwen2_5OmniThinkerForConditionalGeneration,
    layout=layout,
    medium_keys={**VISION_KEYS, "audio": AUDIO_MASK},
    engine_prefix="thinker.",
)


@dataclass(frozen=True)
class OmniEncoder(QwenVisionEncoder):
    """Turns messages, pictures, clips and sounds into model inputs."""

    declaration = FAMILY

    @property
    def media_processors(self) -> tuple[Any, ...]:
        """The processors of clips, of pictures and of sounds."""
        return (*super().media_processors, self.processor.feature_extractor)

    @property
    def marker_ids(self) -> frozenset[int]:
        """Ids around pictures, clips and sounds."""
        names = ("vision_bos_token", "vision_eos_token", "audio_bos_token", "audio_eos_token")
        return frozenset(self.tokenizer.convert_tokens_to_ids(getattr(self.processor, name)) for name in names)

    def encode_audio(self, audio: DecodedAudio) -> dict[str, Tensor]:
        """Log-mel features [1, mel bins, frames] and their mask [1, frames], without padding to the full window.

        The processor pads with zeros to its full window before the spectrogram; padding by one analysis window gives
        the same valid frames.

        Raises:
            MediaError: The sound is longer than the model's window, or too short for one token.
        """
        extractor = self.processor.feature_extractor
        num_samples = len(audio.waveform)
        if num_samples > extractor.n_samples:
            limit = extractor.n_samples / extractor.sampling_rate
            raise MediaError(
                f"sound of {audio.duration_s:.2f} s is longer than the model's audio window of {limit:.2f} s; "
                "use a shorter one, or cut it with start/end"
            )
        num_frames = -(-num_samples // extractor.hop_length)
        mask = torch.ones(1, num_frames, dtype=torch.int32)
        if not audio_rows(mask):
            raise MediaError(
                f"sound of {1000 * audio.duration_s:.3g} ms is too short: the model makes no token of it; "
                "use a longer one or leave its sound out"
            )
        padded = np.zeros(num_samples + 2 * extractor.n_fft, dtype=np.float32)
        padded[:num_samples] = audio.waveform
        out = extractor(padded, sampling_rate=audio.sample_rate_hz, padding="longest", return_tensors="pt")
        features = out[AUDIO_FEATURES][:, :, :num_frames].contiguous()
        return {AUDIO_FEATURES: features, AUDIO_MASK: mask}

    def silent_audio(self, encoded: Encoded) -> dict[str, Tensor]:
        """The same sound with every sample zero."""
        num_frames = int(encoded[AUDIO_MASK].sum())
        extractor = self.processor.feature_extractor
        silence = np.zeros(num_frames * extractor.hop_length, dtype=np.float32)
        return self.encode_audio(DecodedAudio(waveform=silence, sample_rate_hz=extractor.sampling_rate))

    def media_text(self, kind: MediaKind) -> str:
        """The placeholder of a picture, clip or sound between its markers."""
        processor = self.processor
        if kind == "audio":
            return f"{processor.audio_bos_token}{self.tokens[kind]}{processor.audio_eos_token}"
        return f"{processor.vision_bos_token}{self.tokens[kind]}{processor.vision_eos_token}"

    @property
    def places(self) -> tuple[str, ...]:
        """Texts where media go; if clip and sound are one medium, also the text for a clip that a sound follows."""
        both = (self._clip_and_sound,) if self.settings.audio_in_video == "interleaved" else ()
        return (*both, *super().places)

    @property
    def _clip_and_sound(self) -> str:
        """The chat template's text for a clip and the sound after it."""
        return self.media_text("video") + self.media_text("audio")

    def insert(self, waiting: Waiting, place: str) -> tuple[str, Sequence[Span]]:
        """Returns text and spans for a place of the prompt, which takes the next waiting medium of its kind."""
        if place == self.tokens["audio"]:
            span = self.layout.sound(int(audio_rows(next_medium(waiting, "audio")[AUDIO_MASK])))
            return place * len(span.kinds), (span,)
        if place == self._clip_and_sound:
            clip, sound = next_medium(waiting, "video"), next_medium(waiting, "audio")
            grid, seconds = clip[VIDEO_GRID][0].tolist(), clip[VIDEO_SECONDS][0]
            span = self.layout.sounding_clip(grid, seconds, int(audio_rows(sound[AUDIO_MASK])))
            # The tokens of clip and sound take turns, within both pairs of markers.
            processor, tokens = self.processor, self.tokens
            placeholders = "".join(tokens[kind] for kind in span.kinds if kind is not None)
            text = (
                f"{processor.vision_bos_token}{processor.audio_bos_token}{placeholders}"
                f"{processor.audio_eos_token}{processor.vision_eos_token}"
            )
            return text, (span,)
        return super().insert(waiting, place)


def audio_rows(mask: Tensor) -> Tensor:
    """Number of feature rows of every sound of a mask [sounds, frames]: two strided convolutions quarter the frames."""
    frames = mask.sum(-1, dtype=torch.int64)
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


class OmniThinker(QwenVisionBackbone):
    """A loaded thinker."""

    declaration = FAMILY
    text_at = "model"
    towers_at: ClassVar[Mapping[str, str]] = {"vision": "visual", "audio": "audio_tower"}
    projectors_at: ClassVar[Mapping[str, Sequence[str]]] = {
        "vision": ("visual.merger",),
        "audio": ("audio_tower.proj",),
    }
    tower_layers: ClassVar[Mapping[str, LayerKinds]] = {
        "vision": {
            "attention": ("attn.q", "attn.k", "attn.v", "attn.proj"),
            "mlp": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
            "projector": ("merger.mlp",),
        },
        "audio": {
            "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
            "mlp": ("layers.fc1", "layers.fc2"),
            "projector": ("audio_tower.proj",),
        },
    }

    def media_features(self, media: MediaInputs) -> dict[str, Tensor]:
        """Runs each tower once over all media of the batch; returns rows [tokens, hidden] in prompt order, by kind."""
        features = super().media_features(media)
        if AUDIO_FEATURES in media.tensors:
            waves, mask = media.tensors[AUDIO_FEATURES], media.tensors[AUDIO_MASK]
            features["audio"] = self.model.get_audio_features(waves, mask, return_dict=True).last_hidden_state
        return features

    def minimal_media(self, kind: MediaKind) -> dict[str, Tensor]:
        """A picture, clip or sound that makes one feature row, black or silent."""
        if kind != "audio":
            return super().minimal_media(kind)
        frames = 4
        mel_bins = self.model.config.audio_config.num_mel_bins
        return {AUDIO_FEATURES: torch.zeros(1, mel_bins, frames), AUDIO_MASK: torch.ones(1, frames, dtype=torch.int32)}

    def feature_rows(self, media: MediaInputs) -> dict[str, Tensor]:
        """How many feature rows the towers will make of every picture, clip and sound."""
        rows = super().feature_rows(media)
        if AUDIO_MASK in media.tensors:
            rows["audio"] = audio_rows(media.tensors[AUDIO_MASK])
        return rows
