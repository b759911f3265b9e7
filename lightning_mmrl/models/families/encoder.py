"""What the encoders of all families share: from messages and encoded media to ids and positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.models.chat import render_chat
from lightning_mmrl.models.families import qwen_media
from lightning_mmrl.models.families.family import Family
from lightning_mmrl.models.families.qwen_media import Encoded
from lightning_mmrl.models.folder import NO_CODE
from lightning_mmrl.models.positions import MediaLayout, Span, prompt_positions
from lightning_mmrl.prompts.template import control_token_refusal
from lightning_mmrl.settings.model import AudioInVideo, PositionRule
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, DecodedVideo
from lightning_mmrl.types.records import MediaKind, Message


@dataclass(frozen=True)
class QwenEncoder:
    """Turns messages and decoded media into model inputs with the checkpoint's own processor and chat template.

    A family's encoder says `parts`, `family` and `kinds`. What reads no media stays as it is here.
    """

    parts: ClassVar[Family]
    family: ClassVar[str]
    kinds: ClassVar[frozenset[MediaKind]] = frozenset()

    processor: Any
    config: Any
    eos_token_ids: tuple[int, ...]
    position_rule: PositionRule = "previous_maximum"
    audio_in_video: AudioInVideo = "separate"

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path,
        *,
        position_rule: PositionRule = "previous_maximum",
        audio_in_video: AudioInVideo = "separate",
    ) -> Self:
        """Loads the processor, the configuration and the end-of-sequence ids; no weights.

        Args:
            checkpoint: A Hugging Face folder or hub id.
            position_rule: Where text goes on behind a medium.
            audio_in_video: Whether a clip and the sound whose tag follows its own are separate media or one.

        Raises:
            ConfigError: Clip and sound are to be one, and the model has no ears.
        """
        if audio_in_video == "interleaved" and "audio" not in cls.kinds:
            raise ConfigError(
                f"model.audio_in_video is 'interleaved', but {cls.family} reads no sound; set it to 'separate' or "
                "choose a model that reads audio"
            )
        config = cls.parts.load_config(checkpoint)
        with qwen_media.loading(checkpoint, "processor"):
            processor = cls.parts.processor.from_pretrained(checkpoint, **NO_CODE)
        eos_ids = qwen_media.load_eos_ids(checkpoint)
        return cls(
            processor=processor,
            config=config,
            eos_token_ids=eos_ids,
            position_rule=position_rule,
            audio_in_video=audio_in_video,
        )

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self.processor.tokenizer

    @property
    def pad_token_id(self) -> int:
        """Id that fills padding."""
        return self.tokenizer.pad_token_id

    @property
    def fingerprint(self) -> str:
        """Hash of everything that changes encoded media: part of the cache key."""
        return qwen_media.fingerprint(())

    @property
    def media_kinds(self) -> frozenset[MediaKind]:
        """What the model reads beside text."""
        return self.kinds

    @cached_property
    def max_positions(self) -> int:
        """Positions that the model was made for, as its configuration says; YaRN multiplies those it started from.

        Not the tokenizer's limit, which counts tokens: a clip's tokens share positions.
        """
        config = self.config.get_text_config()
        scaling = config.rope_parameters or {}
        stretched = scaling.get("factor", 1.0) * (scaling.get("original_max_position_embeddings") or 0)
        return max(config.max_position_embeddings, int(stretched))

    @cached_property
    def layout(self) -> MediaLayout:
        """How media lie in a prompt."""
        return self.parts.layout(self.config, self.position_rule)

    @property
    def marker_ids(self) -> frozenset[int]:
        """Ids around media."""
        return frozenset()

    def banned_token_ids(self) -> tuple[int, ...]:
        """Ids that must never be sampled: media placeholders and markers, and head rows without a token."""
        media = {*qwen_media.placeholder_ids(self.config, self.kinds).values(), *self.marker_ids}
        return qwen_media.banned_ids(self.tokenizer, media, self.config.get_text_config().vocab_size)

    def encode_image(self, image: DecodedImage) -> dict[str, Tensor]:
        """Model inputs of one picture.

        Raises:
            MediaError: The model does not read pictures.
        """
        raise qwen_media.unreadable(self.family, self.kinds, "image")

    def encode_video(self, video: DecodedVideo) -> dict[str, Tensor]:
        """Model inputs of one clip.

        Raises:
            MediaError: The model does not read clips.
        """
        raise qwen_media.unreadable(self.family, self.kinds, "video")

    def encode_audio(self, audio: DecodedAudio) -> dict[str, Tensor]:
        """Model inputs of one sound.

        Raises:
            MediaError: The model has no ears.
        """
        raise qwen_media.unreadable(self.family, self.kinds, "audio")

    def blank_image(self, encoded: Encoded) -> dict[str, Tensor]:
        """A picture of the same size, uniformly grey."""
        raise qwen_media.unreadable(self.family, self.kinds, "image")

    def blank_video(self, encoded: Encoded) -> dict[str, Tensor]:
        """The same clip with every frame uniformly grey."""
        raise qwen_media.unreadable(self.family, self.kinds, "video")

    def silent_audio(self, encoded: Encoded) -> dict[str, Tensor]:
        """The same sound with every sample zero."""
        raise qwen_media.unreadable(self.family, self.kinds, "audio")

    def encode_prompt(self, messages: Sequence[Message], prefill: str, media: Sequence[Encoded]) -> dict[str, Tensor]:
        """One prompt: token ids [P], position ids [3, P], the next position [1], and its media's tensors.

        Args:
            messages: Turns that end with a user turn; tags mark where media go.
            prefill: Opening of the assistant turn that the prompt already contains.
            media: Encoded media in the order of the tags.

        Raises:
            MediaError: The media are not those of the tags, or of a kind that the model does not read.
            DataError: A text holds what the tokenizer reads as a control token, or the prompt is longer than the
                model's positions.
        """
        self._check_text(*(message.content for message in messages), prefill)
        text, spans = self.insert_media(self.render(messages) + prefill, media)
        ids = self.tokenizer(text, return_tensors="pt").input_ids[0]
        kinds = {token_id: kind for kind, token_id in qwen_media.placeholder_ids(self.config, self.kinds).items()}
        positions, next_position = prompt_positions([kinds.get(token_id) for token_id in ids.tolist()], spans)
        if next_position > self.max_positions:
            raise DataError(
                f"a prompt of {len(ids)} tokens takes {next_position} positions, and the model has "
                f"{self.max_positions}; shorten its text or its media"
            )
        return {
            "input_ids": ids,
            "position_ids": positions,
            "next_position": torch.tensor([next_position]),
            **qwen_media.tower_inputs(media),
        }

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation through the checkpoint's chat template, up to the opening of the assistant turn."""
        chat = [{"role": turn.role, "content": qwen_media.content_parts(turn.content)} for turn in messages]
        return render_chat(self.processor, self.tokenizer, chat)

    def insert_media(self, text: str, media: Sequence[Encoded]) -> tuple[str, list[Span]]:
        """A rendered conversation with one placeholder for each feature row, and the media's spans."""
        return text, []

    def encode_target(self, text: str) -> list[int]:
        """Token ids of an assistant turn, closed by the end-of-sequence token.

        Raises:
            DataError: The text holds what the tokenizer reads as a control token.
        """
        self._check_text(text)
        return [*self.tokenizer(text).input_ids, self.eos_token_ids[0]]

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        """Texts that the tokenizer reads as one token wherever they stand, beside tags that are learnt as text."""
        return tuple(token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)

    def _check_text(self, *texts: str) -> None:
        for text in texts:
            if token := next((token for token in self._control_tokens if token in text), None):
                raise DataError(f"the text {text[:80]!r} holds {control_token_refusal(token)}")

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of sampled tokens, without special tokens."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
