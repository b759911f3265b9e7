"""Builds what an rl stage samples with if rollouts are sampled ahead (`rollout.lag`)."""

from dataclasses import dataclass

from lightning_mmrl.app.assembly import Assembly, quiet_libraries
from lightning_mmrl.app.stages import stage_policy
from lightning_mmrl.registry.own_code import opened, opened_now
from lightning_mmrl.rollout.engine_process import EngineProcess
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.settings.rollout import lag_of
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.stages.ahead import RolloutsAhead
from lightning_mmrl.stages.context import StageContext
from lightning_mmrl.training.console import ConsoleProgress
from lightning_mmrl.training.trainer import prepare_process


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecipe:
    """Makes the engine of a stage in another process, with the model that the stage's policy is made of.

    Attributes:
        config: The configuration for the stage.
        name: The stage.
        stage: Its settings.
        folder: The checkpoint that its policy was loaded from.
        prefixes: The user's own code that is open (`--allow-targets`).
    """

    config: RunSettings
    name: str
    stage: StageSettings
    folder: str
    prefixes: tuple[str, ...] = ()

    def __call__(self) -> HFEngine:
        """Builds the engine."""
        quiet_libraries()
        prepare_process(self.stage.trainer, self.config.seed)  # the seed decides nothing that is sampled
        assert self.stage.sampling is not None
        with opened(self.prefixes):
            parts = Assembly(config=self.config, console=ConsoleProgress(quiet=True))
            encoder = parts.encoder(self.folder)
            policy = stage_policy(self.name, self.stage, self.folder, encoder, parts)
            engine = parts.rollout_engine(policy, encoder, self.stage.sampling)
        assert isinstance(engine, HFEngine), "config.checks refuses a lag with other engines"
        return engine


def rollouts_ahead(parts: Assembly, context: StageContext, start_from: str) -> RolloutsAhead:
    """The engine process of a stage, and the order in which it is used."""
    recipe = EngineRecipe(
        config=parts.config,
        name=context.name,
        stage=context.settings,
        folder=start_from,
        prefixes=opened_now(),
    )
    assert context.upcoming is not None
    poll = parts.group.interruption.poll
    lag, note = lag_of(parts.config.rollout), context.costs.beside.append
    return RolloutsAhead(EngineProcess(recipe), lag, context.upcoming, poll, note)
