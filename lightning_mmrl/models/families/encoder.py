"""The base of the encoders of all families: it turns messages and encoded media into token ids and positions."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from lightning_mmrl.errors import ConfigError, DataError, MediaError
from lightning_mmrl.models.chat import content_parts, render_chat
from lightning_mmrl.models.families.family import Family, placeholder_ids
from lightning_mmrl.models.families.media_keys import TIMES
from lightning_mmrl.models.folder import NO_CODE
from lightning_mmrl.models.loading import load_eos_ids, loading
from lightning_mmrl.models.positions import MediaLayout, Span, prompt_positions
from lightning_mmrl.prompts.template import QUESTION, control_token_refusal
from lightning_mmrl.settings.model import ModelSettings, PositionRule
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, DecodedVideo, OwnSizes
from lightning_mmrl.types.records import MediaKind, Message

ENCODING = 3
"""Version of the model inputs that processors give, a part of cache keys; raised if the same media give others."""

Encoded = Mapping[str, Tensor]
"""One medium as tensors, under the names of its family's processor."""


@dataclass(frozen=True)
class FamilyEncoder:
    """Turns messages and decoded media into model inputs with the checkpoint's own processor and chat template.

    Each family has a subclass with its `declaration`. A family without media keeps the methods for media as they are.
    """

    declaration: ClassVar[Family]

    processor: Any
    config: Any
    eos_token_ids: tuple[int, ...]
    """Ids that end a completion."""
    settings: ModelSettings = field(default_factory=ModelSettings)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path,
        *,
        position_rule: str = ModelSettings.position_rule,
        audio_in_video: str = ModelSettings.audio_in_video,
    ) -> Self:
        """Loads the processor, the configuration and the end-of-sequence ids; no weights.

        Args:
            checkpoint: A Hugging Face folder or hub id.
            position_rule: Position of the first text token after a medium.
            audio_in_video: Whether a clip, and a sound whose tag follows the clip's tag, are separate media or one.

        Raises:
            ConfigError: Clip and sound are to be one, and the model does not read sound.
        """
        family = cls.declaration
        if audio_in_video == "interleaved" and "audio" not in family.medium_keys:
            raise ConfigError(
                f"model.audio_in_video is 'interleaved', but {family.name} reads no sound; set it to 'separate' or "
                "choose a model that reads audio"
            )
        config = family.load_config(checkpoint)
        with loading(checkpoint, "processor"):
            processor = family.processor.from_pretrained(checkpoint, **NO_CODE)
        tokenizer = getattr(processor, "tokenizer", processor)
        return cls(
            processor=processor,
            config=config,
            eos_token_ids=load_eos_ids(checkpoint, config.get_text_config().vocab_size, tokenizer),
            settings=ModelSettings(position_rule=position_rule, audio_in_video=audio_in_video),
        )

    @property
    def family(self) -> str:
        """The name of the family in error messages."""
        return self.declaration.name

    @property
    def media_kinds(self) -> frozenset[MediaKind]:
        """The kinds of media that the model reads in addition to text."""
        return frozenset(self.declaration.medium_keys)

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self.processor.tokenizer

    @property
    def pad_token_id(self) -> int:
        """Id of padding, which masks leave out; if the tokenizer has none, as in Llama 3, it is the closing id."""
        own = self.tokenizer.pad_token_id
        return self.closing_token_id if own is None else own

    @property
    def closing_token_id(self) -> int:
        """Id that closes targets: the tokenizer's own end, which Llama 3 does not list first in `eos_token_ids`."""
        own = self.tokenizer.eos_token_id
        return own if own in self.eos_token_ids else self.eos_token_ids[0]

    @property
    def media_processors(self) -> tuple[Any, ...]:
        """The parts of the processor that turn media into tensors."""
        return ()

    @property
    def own_sizes(self) -> OwnSizes | None:
        """The sizes in which the processor shows pictures and clips; None for a family that reads neither."""
        return None

    @property
    def fingerprint(self) -> str:
        """Hash of everything that changes encoded media: part of the cache key."""
        settings = [ENCODING, *(part.to_dict() for part in self.media_processors)]
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @cached_property
    def max_positions(self) -> int:
        """Number of positions that the model was made for, by its configuration; YaRN multiplies the original number.

        Llama 3 scales its rotary embedding too, but its configuration already has the number after scaling. The
        tokenizer's limit does not serve: it counts tokens, and the tokens of a clip share positions.
        """
        config = self.config.get_text_config()
        scaling = config.rope_parameters or {}
        if scaling.get("rope_type") != "yarn":
            return config.max_position_embeddings
        stretched = scaling.get("factor", 1.0) * (scaling.get("original_max_position_embeddings") or 0)
        return max(config.max_position_embeddings, int(stretched))

    @cached_property
    def layout(self) -> MediaLayout:
        """How media lie in a prompt."""
        return self.declaration.layout(self.config, cast(PositionRule, self.settings.position_rule))

    @property
    def marker_ids(self) -> frozenset[int]:
        """Ids of the markers around media."""
        return frozenset()

    def banned_token_ids(self) -> tuple[int, ...]:
        """Ids that must never be sampled: media placeholders and markers, and head rows without a token."""
        placeholders = placeholder_ids(self.config, self.media_kinds).values()
        unused = range(len(self.tokenizer), self.config.get_text_config().vocab_size)
        return tuple(sorted({*placeholders, *self.marker_ids, *unused}))

    def engine_config(self) -> Any:
        """The model's configuration in the form that a separate engine reads."""
        return self.declaration.engine_config(self.config)

    def released(self, model: Any) -> Any:
        """The model as the released checkpoints hold it, for saving it in their layout."""
        return self.declaration.released(model)

    @property
    def engine_prefix(self) -> str:
        """Weight names start with this in a separate engine, but not in the policy."""
        return self.declaration.engine_prefix

    def encode_image(self, image: DecodedImage) -> dict[str, Tensor]:
        """Model inputs of one picture.

        Raises:
            MediaError: The model does not read pictures.
        """
        raise self.unreadable("image")

    def encode_video(self, video: DecodedVideo) -> dict[str, Tensor]:
        """Model inputs of one clip.

        Raises:
            MediaError: The model does not read clips.
        """
        raise self.unreadable("video")

    def encode_audio(self, audio: DecodedAudio) -> dict[str, Tensor]:
        """Model inputs of one sound.

        Raises:
            MediaError: The model does not read sound.
        """
        raise self.unreadable("audio")

    def blank_image(self, encoded: Encoded) -> dict[str, Tensor]:
        """A picture of the same size, uniformly grey."""
        raise self.unreadable("image")

    def blank_video(self, encoded: Encoded) -> dict[str, Tensor]:
        """The same clip with every frame uniformly grey."""
        raise self.unreadable("video")

    def silent_audio(self, encoded: Encoded) -> dict[str, Tensor]:
        """The same sound with every sample zero."""
        raise self.unreadable("audio")

    def unreadable(self, kind: MediaKind) -> MediaError:
        """The error for a medium of a kind that the family does not read."""
        reads = ", ".join(["text", *sorted(self.media_kinds)]) if self.media_kinds else "text alone"
        return MediaError(
            f"{self.family} reads {reads}, not {kind}; choose a model that reads {kind} or leave the <{kind}> media out"
        )

    def encode_prompt(
        self, messages: Sequence[Message], prefill: str, media: Sequence[Encoded], raw: str | None = None
    ) -> dict[str, Tensor]:
        """One prompt: token ids [P], position ids [3, P], the next position [1], and its media's tensors.

        Args:
            messages: Turns that end with a user turn; tags mark where media go.
            prefill: Opening of the assistant turn that the prompt already contains.
            media: Encoded media in the order of the tags.
            raw: Text of the prompt without a chat template, in which the only turn takes the place of `QUESTION`.

        Raises:
            MediaError: Media and tags do not match, or a medium is of a kind that the model does not read.
            DataError: A text holds a control token of the tokenizer, or the prompt takes more positions than the model
                has.
        """
        self._check_text(*(message.content for message in messages), prefill, raw or "")
        conversation = self.render(messages) if raw is None else self.fill(raw, messages)
        text, spans = self.insert_media(conversation + prefill, media)
        # The template has written all special tokens; some tokenizers, such as Llama 3's, would repeat the first one.
        ids = self.tokenizer(text, add_special_tokens=raw is not None, return_tensors="pt").input_ids[0]
        kinds = {token_id: kind for kind, token_id in placeholder_ids(self.config, self.media_kinds).items()}
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
            **tower_inputs(media),
        }

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation through the checkpoint's chat template, up to the opening of the assistant turn."""
        chat = [{"role": turn.role, "content": content_parts(turn.content)} for turn in messages]
        return render_chat(self.processor, self.tokenizer, chat)

    def fill(self, raw: str, messages: Sequence[Message]) -> str:
        """Returns `raw`, a text without a chat template, with the only turn in the place of `QUESTION`.

        Raises:
            MediaError: The turn has a medium of a kind that the family does not read.
        """
        (turn,) = messages
        parts = content_parts(turn.content)
        texts = [part.get("text") or self.media_text(cast(MediaKind, part["type"])) for part in parts]
        return raw.replace(QUESTION, "".join(texts))

    def media_text(self, kind: MediaKind) -> str:
        """The markers of a medium and its placeholder between them, as the family's chat template writes them.

        Raises:
            MediaError: The family does not read this kind.
        """
        raise self.unreadable(kind)

    def insert_media(self, text: str, media: Sequence[Encoded]) -> tuple[str, list[Span]]:
        """A rendered conversation with one placeholder for each feature row, and the media's spans."""
        return text, []

    def encode_target(self, text: str) -> list[int]:
        """Token ids of an assistant turn, closed by the end-of-sequence token.

        Raises:
            DataError: The text holds a control token of the tokenizer.
        """
        self._check_text(text)
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, self.closing_token_id]

    def encode_continuation(
        self, asked: Sequence[Message], target: str, again: Sequence[Message], prefill: str
    ) -> list[int] | None:
        """Token ids from a closed target to the next one of its conversation: the turns between, and the prefill.

        Args:
            asked: Turns of the prompt that the target answers.
            target: Text of the target.
            again: Turns of the next prompt, without further media.
            prefill: Opening of both targets that the prompts already contain.

        Returns:
            None if the chat template writes the next prompt in another way than as a continuation of the first one and
            its target.

        Raises:
            DataError: A text holds a control token of the tokenizer.
        """
        self._check_text(*(message.content for message in again), prefill)
        closing = self.tokenizer.convert_ids_to_tokens(self.closing_token_id)
        before, after = self.render(asked) + prefill + target + closing, self.render(again) + prefill
        if not after.startswith(before):
            return None
        return self.tokenizer(after[len(before) :], add_special_tokens=False).input_ids

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        """Texts that the tokenizer reads as one special token wherever they stand; tags of answers are not special."""
        return tuple(token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)

    def _check_text(self, *texts: str) -> None:
        for text in texts:
            if token := next((token for token in self._control_tokens if token in text), None):
                raise DataError(f"the text {text[:80]!r} holds {control_token_refusal(token)}")

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of sampled tokens, without special tokens."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)


def tower_inputs(media: Sequence[Encoded]) -> dict[str, Tensor]:
    """The towers' inputs for one prompt's media, each key concatenated along its first axis in prompt order.

    Shorter sounds are padded on the right with zeros.
    """
    found = {}
    for key in dict.fromkeys(key for item in media for key in item if key not in TIMES):
        tensors = [item[key] for item in media if key in item]
        widths = [tensor.shape[-1] for tensor in tensors]
        if tensors[0].dim() > 1 and len(set(widths)) > 1:  # sounds differ in their number of frames, the last axis
            gaps = [max(widths) - width for width in widths]
            tensors = [nn.functional.pad(tensor, (0, gap)) for tensor, gap in zip(tensors, gaps, strict=True)]
        found[key] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    return found
