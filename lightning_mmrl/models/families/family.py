"""What makes a family: its name, its transformers classes, and how its media lie in a prompt."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.models.families import qwen_media
from lightning_mmrl.models.positions import MediaLayout
from lightning_mmrl.settings.model import PositionRule


def text_layout(config: Any, rule: PositionRule) -> MediaLayout:
    """Of a family without media."""
    return MediaLayout(rule=rule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What differs between the families.

    `processor` is what an exported checkpoint has beside its weights: a tokenizer in families of text alone. `layout`
    maps a checkpoint's configuration and the rule for positions to the layout of its media.

    Family(
        name="Qwen2", config=Qwen2Config, processor=AutoTokenizer, model=Qwen2ForCausalLM, layout=text_layout
    )
    """

    name: str
    config: Any
    processor: Any
    model: Any
    layout: Callable[[Any, PositionRule], MediaLayout]
    engine_prefix: str = ""
    """What names of weights begin with in the released checkpoints, which vLLM reads, and not in those of `model`."""

    def engine_config(self, config: Any) -> Any:
        """The configuration that vLLM knows the family by: that of the released checkpoints."""
        return config

    def load_config(self, checkpoint: str | Path) -> Any:
        """The configuration of a checkpoint of this family."""
        return qwen_media.require_family(qwen_media.load_config(checkpoint), self.config, checkpoint, self.name)
