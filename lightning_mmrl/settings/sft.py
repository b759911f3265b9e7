"""Keys of a stage that learns targets."""

from dataclasses import dataclass

from lightning_mmrl.settings.algorithm import MicrobatchSettings
from lightning_mmrl.settings.stage import NodeSettings, StageSettings


@dataclass
class SftSettings(StageSettings, MicrobatchSettings):
    """One stage of supervised fine-tuning."""

    mask_history: bool = False
    """Learn the last assistant turn of a conversation alone; false: every assistant turn that answers a user turn."""


def microbatches_of(stage: StageSettings) -> MicrobatchSettings:
    """The microbatches of any stage that trains: an rl stage has them in its algorithm, an sft stage itself.

    A stage of another kind that has no keys for them gets the defaults.
    """
    if stage.algorithm is not None:
        return stage.algorithm.update
    return stage if isinstance(stage, MicrobatchSettings) else MicrobatchSettings()


def learns_last_turn(stage: NodeSettings) -> bool:
    """True if a stage learns the last assistant turn of each conversation alone."""
    return isinstance(stage, SftSettings) and stage.mask_history
