"""Keys of a stage that learns targets."""

from dataclasses import dataclass
from typing import Any

from lightning_mmrl.settings.algorithm import MicrobatchSettings
from lightning_mmrl.settings.setting import setting
from lightning_mmrl.settings.stage import StageSettings


@dataclass
class SftSettings(StageSettings, MicrobatchSettings):
    """One stage of supervised fine-tuning."""

    target: str | None = None
    """The answer to learn from each row, with `{NAME}` for the text of a column, such as `<answer>{solution}</answer>`;
    it takes the place of the last assistant turn. Null: the assistant turns as they are."""
    mask_history: bool = False
    """Learn the last assistant turn of a conversation alone; false: every assistant turn that answers a user turn."""
    loss: Any = setting(None, node=True)
    """Loss of each target token, such as DynamicFineTuning; null: cross-entropy."""


def microbatches_of(stage: StageSettings) -> MicrobatchSettings:
    """The microbatches of any stage that trains: an rl stage has them in its algorithm, others themselves.

    A stage of another kind that has no keys for them gets the defaults.
    """
    if stage.algorithm is not None:
        return stage.algorithm.update
    return stage if isinstance(stage, MicrobatchSettings) else MicrobatchSettings()
