"""Reinforcement learning from verifiable rewards: samples completions, scores them, and makes weights."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_mmrl.config.checks.values import check_algorithm, check_trained_stage, require_parts
from lightning_mmrl.curriculum.graph import usual_inputs
from lightning_mmrl.protocols.plain import StageJob, TrackedRun
from lightning_mmrl.settings.rollout import lag_of
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.types.records import HANDOFF, WEIGHTS, ArtifactType, Edge, StageSpec

if TYPE_CHECKING:
    from lightning_mmrl.app.assembly import Assembly
    from lightning_mmrl.models.policy import Policy
    from lightning_mmrl.protocols.tensors import PromptEncoder


class ReinforcementKind:
    """Implements `StageKind`."""

    settings = StageSettings
    supervised = False

    def inputs(self, stage: StageSettings) -> Mapping[str, Edge]:
        """Weights, and data that other stages made."""
        return usual_inputs(stage)

    def outputs(self, stage: StageSettings) -> Mapping[str, ArtifactType]:
        """The handoff."""
        return {HANDOFF: "weights"}

    def describe(self, stage: StageSettings) -> str:
        """Says in words how large a batch and its groups are, and how many updates follow."""
        assert stage.algorithm is not None
        batch, size, update = stage.data.batch_size, stage.algorithm.group_size, stage.algorithm.update
        steps = update.num_epochs * update.num_minibatches
        return f"{batch} prompts x {size} = {batch * size} completions, {steps} update{'s' if steps > 1 else ''}"

    def check(self, path: str, stage: StageSettings, config: RunSettings) -> None:
        """Refuses what no trained stage can do, missing parts, and contradictory values of the algorithm."""
        check_trained_stage(path, stage, config)
        require_parts(path, stage)
        check_algorithm(path, stage)

    def preflight(self, path: str, stage: StageSettings) -> None:
        """Builds optimizer, schedule, rewards and algorithm."""
        from lightning_mmrl.app.preflight import RL_GIVES, preflight_algorithm, preflight_rewards, preflight_trained

        make = preflight_trained(path, stage, RL_GIVES)
        preflight_rewards(path, stage.rewards)
        preflight_algorithm(path, stage, make)

    def build(
        self, spec: StageSpec, inputs: Mapping[str, Path], directory: Path, run: TrackedRun, parts: "Assembly"
    ) -> StageJob:
        """Builds the job: a LightningModule, its data and its Trainer, with an engine, rewards and rollout tables."""
        from lightning_mmrl.app.ahead import rollouts_ahead
        from lightning_mmrl.app.algorithm import build_algorithm
        from lightning_mmrl.app.rewards import training_rewards
        from lightning_mmrl.app.stages import training_job
        from lightning_mmrl.registry import targets
        from lightning_mmrl.stages.rollout_table import RolloutTable

        path = f"stages.{spec.name}"

        def module(policy: "Policy", encoder: "PromptEncoder", common: dict[str, Any], resources: ExitStack) -> Any:
            stage = common["context"].settings
            assert stage.sampling is not None
            assert stage.rewards is not None
            make = targets.build({**stage.module, "_partial_": True}, f"{path}.module")
            if lag_of(parts.config.rollout):
                engine = rollouts_ahead(parts, common["context"], str(inputs[WEIGHTS]))
            else:
                engine = parts.rollout_engine(policy, encoder, stage.sampling)
            resources.callback(engine.close)
            return make(
                engine=engine,
                rewards=resources.enter_context(training_rewards(stage.rewards, f"{path}.rewards", parts)),
                algorithm=build_algorithm(stage, make, path),
                table=RolloutTable(directory / "rollouts", stage),
                **common,
            )

        return training_job(spec, inputs, directory, run, parts, module)


KIND = ReinforcementKind()
