"""Shared by the families without towers: text in, text out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_mmrl.models.chat import render_chat
from lightning_mmrl.models.families.backbone import FamilyBackbone
from lightning_mmrl.models.families.encoder import FamilyEncoder
from lightning_mmrl.prompts.template import media_tags
from lightning_mmrl.types.records import Message


@dataclass(frozen=True)
class TextEncoder(FamilyEncoder):
    """Turns messages into token ids with the checkpoint's own tokenizer and chat template.

    `processor` is the tokenizer: an exported checkpoint of a text-only family has it in a processor's place.
    """

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self.processor

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation through the chat template, which takes each turn as one text.

        Raises:
            MediaError: A turn has a media tag.
        """
        for turn in messages:
            for kind in media_tags(turn.content):
                raise self.unreadable(kind)
        chat = [{"role": turn.role, "content": turn.content} for turn in messages]
        return render_chat(self.processor, self.tokenizer, chat)


class TextBackbone(FamilyBackbone):
    """A loaded text model."""

    text_at = "model"

    def text_positions(self, position_ids: Tensor) -> Tensor:
        """One row [B, S] of the three rows, which are equal for text: the decoder's rotary embedding has one axis."""
        return position_ids[0]
