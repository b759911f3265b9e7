"""The declaration of a model family: its name, its transformers classes, and how its media lie in a prompt."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_mmrl.models.families.media_keys import AUDIO_FEATURES, IMAGE_PIXELS, VIDEO_PIXELS
from lightning_mmrl.models.loading import load_config, require_family
from lightning_mmrl.models.positions import MediaLayout
from lightning_mmrl.settings.model import PositionRule
from lightning_mmrl.types.records import MediaKind

KINDS: tuple[MediaKind, ...] = ("image", "video", "audio")


def text_layout(config: Any, rule: PositionRule) -> MediaLayout:
    """The layout of a family without media."""
    return MediaLayout(rule=rule)


def placeholder_ids(config: Any, kinds: Collection[MediaKind]) -> dict[MediaKind, int]:
    """For each kind of media, the token id that stands for one feature row; transformers' keys are alike for all."""
    return {kind: getattr(config, f"{kind}_token_id") for kind in KINDS if kind in kinds}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The data in which families differ; their code is in an encoder and a backbone.

    `processor` is saved with an exported checkpoint: a tokenizer in text-only families. `layout` maps a checkpoint's
    configuration and the rule for positions to the layout of its media. `medium_keys` names, for each kind of media
    that the family reads, a key of `MediaInputs` with one row per medium, so that its `counts` tell how many media of
    that kind each prompt has.

    Family(
        name="Qwen2", config=Qwen2Config, processor=AutoTokenizer, model=Qwen2ForCausalLM, layout=text_layout
    )
    """

    name: str
    config: Any
    processor: Any
    model: Any
    layout: Callable[[Any, PositionRule], MediaLayout]
    medium_keys: Mapping[MediaKind, str] = field(default_factory=dict)
    tower_inputs: Mapping[MediaKind, str] = field(
        default_factory=lambda: {"audio": AUDIO_FEATURES, "video": VIDEO_PIXELS, "image": IMAGE_PIXELS}
    )
    """For each kind of media, the key of its tower's input, which the canary blanks."""
    engine_prefix: str = ""
    """Weight names start with this in the released checkpoints, which vLLM reads, but not in checkpoints of `model`."""

    def engine_config(self, config: Any) -> Any:
        """The configuration by which vLLM knows the family, as in the released checkpoints."""
        return config

    def released(self, model: Any) -> Any:
        """The model as the released checkpoints hold it, for saving it in their layout."""
        return model

    def load_config(self, checkpoint: str | Path) -> Any:
        """The configuration of a checkpoint of this family."""
        return require_family(load_config(checkpoint), self.config, checkpoint, self.name)
