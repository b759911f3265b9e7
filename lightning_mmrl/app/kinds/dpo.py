"""Preference learning: learns to prefer the chosen answer of each pair to the rejected one, and makes weights."""

from lightning_mmrl.app.kinds.sft import SupervisedKind
from lightning_mmrl.config.checks.targets import check_preference
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.dpo import DpoSettings
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import StageSettings


class PreferenceKind(SupervisedKind):
    """Implements `StageKind`: a supervised stage whose samples have two answers each."""

    settings = DpoSettings

    def describe(self, stage: StageSettings) -> str:
        """Says in words how many pairs a batch has."""
        return f"{stage.data.batch_size} pairs"

    def check(self, path: str, stage: StageSettings, config: RunSettings) -> None:
        """Refuses what no supervised stage can do, and losses that cannot be summed."""
        super().check(path, stage, config)
        assert isinstance(stage, DpoSettings)
        check_preference(f"{path}.preference", stage.preference)

    def preflight(self, path: str, stage: StageSettings) -> None:
        """Builds optimizer and schedule, and refuses a module that does not learn pairs."""
        from lightning_mmrl.app.preflight import SFT_GIVES, preflight_trained
        from lightning_mmrl.stages.dpo import DPOModule

        module = preflight_trained(path, stage, SFT_GIVES).func
        if not (isinstance(module, type) and issubclass(module, DPOModule)):
            raise ConfigError(
                f"{path}.module is {getattr(module, '__name__', module)}, which does not learn pairs; take DPOModule "
                "or a class derived from it"
            )


KIND = PreferenceKind()
