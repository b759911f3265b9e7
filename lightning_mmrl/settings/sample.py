"""Keys of a stage that samples completions."""

from dataclasses import dataclass, field
from typing import Any

from lightning_mmrl.settings.selection import SelectionSettings
from lightning_mmrl.settings.setting import setting, target
from lightning_mmrl.settings.stage import NodeSettings


@dataclass
class SampleSettings(NodeSettings):
    """One stage that samples completions and trains nothing."""

    num_completions: int = setting(8, at_least=1)
    """Completions per prompt, K."""
    rollout: Any = target(None)
    """`_target_` of the engine; null: the engine of the run."""
    keep: SelectionSettings = field(default_factory=SelectionSettings)
    """Which right answers the artifact `own` has."""
