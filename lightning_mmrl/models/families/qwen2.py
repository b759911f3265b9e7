"""Qwen2 and Qwen2.5 without towers: text in, text out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from lightning_mmrl.models.families import qwen_media
from lightning_mmrl.models.families.backbone import QwenBackbone
from lightning_mmrl.prompts.template import media_tags
from lightning_mmrl.types.batches import MediaInputs
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, DecodedVideo
from lightning_mmrl.types.records import MediaKind, Message


@dataclass(frozen=True)
class Qwen2Encoder:
    """Turns messages into token ids with the checkpoint's own tokenizer and chat template.

    `processor` is the tokenizer: it is what an exported checkpoint of this family has in a processor's place.
    """

    family: ClassVar[str] = "Qwen2"
    kinds: ClassVar[frozenset[MediaKind]] = frozenset()

    processor: Any
    config: Qwen2Config
    eos_token_ids: tuple[int, ...]

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path) -> "Qwen2Encoder":
        """Loads the tokenizer, the configuration and the end-of-sequence ids; no weights."""
        config = load_config(checkpoint)
        with qwen_media.loading(checkpoint, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        return cls(processor=tokenizer, config=config, eos_token_ids=qwen_media.load_eos_ids(checkpoint))

    @property
    def pad_token_id(self) -> int:
        """Id that fills padding."""
        return self.processor.pad_token_id

    @property
    def fingerprint(self) -> str:
        """A constant: there are no media to encode."""
        return qwen_media.fingerprint(())

    @property
    def media_kinds(self) -> frozenset[MediaKind]:
        """Nothing beside text."""
        return self.kinds

    def banned_token_ids(self) -> tuple[int, ...]:
        """Head rows without a token."""
        return qwen_media.banned_ids(self.processor, (), self.config.vocab_size)

    def encode_image(self, image: DecodedImage) -> dict[str, Tensor]:
        """Always raises MediaError: the model reads text alone."""
        raise qwen_media.unreadable(self.family, self.kinds, "image")

    def encode_video(self, video: DecodedVideo) -> dict[str, Tensor]:
        """Always raises MediaError."""
        raise qwen_media.unreadable(self.family, self.kinds, "video")

    def encode_audio(self, audio: DecodedAudio) -> dict[str, Tensor]:
        """Always raises MediaError."""
        raise qwen_media.unreadable(self.family, self.kinds, "audio")

    def blank_image(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Always raises MediaError."""
        raise qwen_media.unreadable(self.family, self.kinds, "image")

    def blank_video(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Always raises MediaError."""
        raise qwen_media.unreadable(self.family, self.kinds, "video")

    def silent_audio(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Always raises MediaError."""
        raise qwen_media.unreadable(self.family, self.kinds, "audio")

    def encode_prompt(
        self, messages: Sequence[Message], prefill: str, media: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """One prompt: token ids [P], three equal rows of position ids [3, P], and the next position [1].

        Raises:
            MediaError: A turn has a media tag.
        """
        for turn in messages:
            for kind in media_tags(turn.content):
                raise qwen_media.unreadable(self.family, self.kinds, kind)
        chat = [{"role": turn.role, "content": turn.content} for turn in messages]
        text = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = self.processor(text + prefill, return_tensors="pt").input_ids
        return qwen_media.prompt_tensors(ids, torch.arange(ids.shape[1]).expand(3, 1, -1), {})

    def encode_target(self, text: str) -> list[int]:
        """Token ids of an assistant turn, closed by the end-of-sequence token."""
        return [*self.processor(text).input_ids, self.eos_token_ids[0]]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of sampled tokens, without special tokens."""
        return self.processor.decode(list(token_ids), skip_special_tokens=True)


class Qwen2(QwenBackbone):
    """What a policy needs to know of a loaded Qwen2 or Qwen2.5 text model."""

    text_at = "model"

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path, *, dtype: torch.dtype = torch.float32) -> "Qwen2":
        """Loads the weights of a local folder or hub id."""
        load_config(checkpoint)
        with qwen_media.loading(checkpoint, "model checkpoint"):
            return cls(Qwen2ForCausalLM.from_pretrained(checkpoint, dtype=dtype))

    @classmethod
    def on_meta(cls, config: Qwen2Config) -> "Qwen2":
        """The architecture without weights, for checks of sizes and parameter groups."""
        with torch.device("meta"):
            return cls(Qwen2ForCausalLM(config))

    @property
    def placeholder_ids(self) -> dict[str, int]:
        """None."""
        return {}

    def text_positions(self, position_ids: Tensor) -> Tensor:
        """One row [B, S] of the three, which are equal for text: the decoder's rotary embedding has one axis."""
        return position_ids[0]

    def media_features(self, media: MediaInputs) -> dict[str, Tensor]:
        """None."""
        return {}


def load_config(checkpoint: str | Path) -> Qwen2Config:
    """The configuration of a checkpoint of this family."""
    return qwen_media.require_family(qwen_media.load_config(checkpoint), Qwen2Config, checkpoint, Qwen2Encoder.family)
