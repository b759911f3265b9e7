"""How the stages of an arm share its budget, where the comparison says it for all arms."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.compare import CompareSettings
from lightning_mmrl.settings.rules import one_of, require

if TYPE_CHECKING:
    from lightning_mmrl.app.arms import ArmRun


def with_shares(settings: CompareSettings, runs: Sequence["ArmRun"]) -> CompareSettings:
    """Fills in the shares of arms that give none: those of the comparison, of the stages that the arm trains.

    Raises:
        ConfigError: No arm has one of the stages, a share is not above 0, or an arm has a share for none of its stages.
    """
    if not settings.shares:
        return settings
    for stage, share in settings.shares.items():
        one_of(stage, "shares", list(dict.fromkeys(each for run in runs for each in run.config.trained)))
        require(math.isfinite(share) and share > 0, f"shares.{stage}", share, "above 0")
    arms = {}
    for run in runs:
        arm, trained = settings.arms[run.arm], run.config.trained
        own = {stage: share for stage, share in settings.shares.items() if stage in trained}
        whole = math.fsum(own.values())
        if not arm.shares and not own:
            raise ConfigError(f"shares has none of the stages that arm {run.arm} trains; give {', '.join(trained)} one")
        arms[run.arm] = arm if arm.shares else replace(arm, shares={k: share / whole for k, share in own.items()})
    return replace(settings, arms=arms)
