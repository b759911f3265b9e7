"""What the vision-language Qwen families share: an encoder and a backbone, parametrized by a family's classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_mmrl.models.families import qwen_media
from lightning_mmrl.models.families.backbone import QwenBackbone, vision_rows
from lightning_mmrl.models.families.qwen_media import IMAGE_GRID, VIDEO_GRID
from lightning_mmrl.types.batches import MediaInputs
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, DecodedVideo
from lightning_mmrl.types.records import MediaKind, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionFamily:
    """What differs between the families: their name and classes, and what tells a clip's positions its time.

    `model` has the head and `body` the method that finds positions; `timing` maps arguments of that method to the media
    tensors they take, beside ids and grids.

    VisionFamily(
        name="Qwen2-VL", config=Qwen2VLConfig, processor=Qwen2VLProcessor,
        model=Qwen2VLForConditionalGeneration, body=Qwen2VLModel,
    )
    """

    name: str
    config: Any
    processor: Any
    model: Any
    body: Any
    timing: Mapping[str, str] = field(default_factory=dict)

    def load_config(self, checkpoint: str | Path) -> Any:
        """The configuration of a checkpoint of this family."""
        return qwen_media.require_family(qwen_media.load_config(checkpoint), self.config, checkpoint, self.name)


@dataclass(frozen=True)
class VisionEncoder:
    """Turns messages and decoded media into model inputs with the checkpoint's own processor and chat template.

    A family's encoder is a preset that says `parts` and `family`.
    """

    parts: ClassVar[VisionFamily]
    family: ClassVar[str]
    kinds: ClassVar[frozenset[MediaKind]] = frozenset({"image", "video"})

    processor: Any
    config: Any
    eos_token_ids: tuple[int, ...]
    _rope: Any = field(repr=False)

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path) -> Self:
        """Loads the processor, the configuration and the end-of-sequence ids; no weights."""
        config = cls.parts.load_config(checkpoint)
        with qwen_media.loading(checkpoint, "processor"):
            processor = cls.parts.processor.from_pretrained(checkpoint)
        rope = _without_weights(cls.parts.body, config)
        return cls(processor=processor, config=config, eos_token_ids=qwen_media.load_eos_ids(checkpoint), _rope=rope)

    @property
    def pad_token_id(self) -> int:
        """Id that fills padding."""
        return self.processor.tokenizer.pad_token_id

    @property
    def fingerprint(self) -> str:
        """Hash of everything that changes encoded media: part of the cache key."""
        return qwen_media.fingerprint((self.processor.video_processor, self.processor.image_processor))

    @property
    def media_kinds(self) -> frozenset[MediaKind]:
        """What the model reads beside text."""
        return self.kinds

    def banned_token_ids(self) -> tuple[int, ...]:
        """Ids that must never be sampled: media placeholders and head rows without a token."""
        config = self.config
        media = {config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id}
        return qwen_media.banned_ids(self.processor.tokenizer, media, config.text_config.vocab_size)

    def encode_image(self, image: DecodedImage) -> dict[str, Tensor]:
        """Patches [patches, features] and grid [1, 3] of one picture."""
        return qwen_media.encode_image(self.processor.image_processor, image)

    def encode_video(self, video: DecodedVideo) -> dict[str, Tensor]:
        """Patches [patches, features], grid [1, 3] and seconds per temporal patch [1] of one clip."""
        return qwen_media.encode_video(self.processor.video_processor, video)

    def encode_audio(self, audio: DecodedAudio) -> dict[str, Tensor]:
        """Always raises MediaError: the model has no ears."""
        raise qwen_media.unreadable(self.family, self.kinds, "audio")

    def blank_image(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A picture of the same size, uniformly grey."""
        return qwen_media.blank_image(self.processor.image_processor, encoded)

    def blank_video(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same clip with every frame uniformly grey."""
        return qwen_media.blank_video(self.processor.video_processor, encoded)

    def silent_audio(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Always raises MediaError."""
        raise qwen_media.unreadable(self.family, self.kinds, "audio")

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
        ids = qwen_media.vision_prompt_ids(self.processor, messages, prefill, stacked)
        positions, _ = self._rope.get_rope_index(
            ids,
            qwen_media.vision_token_types(ids, self.config),
            image_grid_thw=stacked.get(IMAGE_GRID),
            video_grid_thw=stacked.get(VIDEO_GRID),
            **{argument: stacked.get(key) for argument, key in self.parts.timing.items()},
        )
        return qwen_media.prompt_tensors(ids, positions, stacked)

    def encode_target(self, text: str) -> list[int]:
        """Token ids of an assistant turn, closed by the end-of-sequence token."""
        return [*self.processor.tokenizer(text).input_ids, self.eos_token_ids[0]]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of sampled tokens, without special tokens."""
        return self.processor.tokenizer.decode(list(token_ids), skip_special_tokens=True)


class VisionBackbone(QwenBackbone):
    """What a policy needs to know of a loaded model: its parts, and how media become embeddings.

    A family's backbone is a preset that says `parts`.
    """

    parts: ClassVar[VisionFamily]
    text_at = "model.language_model"
    towers_at: ClassVar[Mapping[str, str]] = {"vision": "model.visual"}
    medium_keys: ClassVar[Mapping[MediaKind, str]] = {"image": IMAGE_GRID, "video": VIDEO_GRID}

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path, *, dtype: torch.dtype = torch.float32) -> Self:
        """Loads the weights of a local folder or hub id."""
        cls.parts.load_config(checkpoint)
        with qwen_media.loading(checkpoint, "model checkpoint"):
            return cls(cls.parts.model.from_pretrained(checkpoint, dtype=dtype))

    @classmethod
    def on_meta(cls, config: Any) -> Self:
        """The architecture without weights, for checks of sizes and parameter groups."""
        with torch.device("meta"):
            return cls(cls.parts.model(config))

    @property
    def placeholder_ids(self) -> dict[str, int]:
        """Token id that stands for one feature row of each media kind."""
        return {"image": self.model.config.image_token_id, "video": self.model.config.video_token_id}

    def media_features(self, media: MediaInputs) -> dict[str, Tensor]:
        """Runs the tower once over all media of the batch; rows [tokens, hidden] in prompt order, keyed by kind."""
        return qwen_media.vision_features(self.model, media.tensors)

    def feature_rows(self, media: MediaInputs) -> dict[str, Tensor]:
        """How many feature rows the tower will make of every picture and clip."""
        return vision_rows(media, self.model.config.vision_config.spatial_merge_size)


def _without_weights(body: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """A model's configuration and methods alone: its position-id method needs no layer."""
    model = body.__new__(body)
    PreTrainedModel.__init__(model, config)
    return model
