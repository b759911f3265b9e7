"""Supervised fine-tuning: learns the targets of samples, and makes weights."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_mmrl.config.checks.values import check_trained_stage, refuse_parts
from lightning_mmrl.curriculum.graph import usual_inputs
from lightning_mmrl.protocols.plain import StageJob, TrackedRun
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.sft import SftSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.types.records import HANDOFF, ArtifactType, Edge, StageSpec

if TYPE_CHECKING:
    from lightning_mmrl.app.assembly import Assembly
    from lightning_mmrl.models.policy import Policy
    from lightning_mmrl.protocols.tensors import PromptEncoder


class SupervisedKind:
    """Implements `StageKind`."""

    settings = SftSettings
    supervised = True

    def inputs(self, stage: StageSettings) -> Mapping[str, Edge]:
        """Weights, and data that other stages made."""
        return usual_inputs(stage)

    def outputs(self, stage: StageSettings) -> Mapping[str, ArtifactType]:
        """The handoff."""
        return {HANDOFF: "weights"}

    def describe(self, stage: StageSettings) -> str:
        """Says in words how many targets a batch has."""
        return f"{stage.data.batch_size} targets"

    def check(self, path: str, stage: StageSettings, config: RunSettings) -> None:
        """Refuses what no trained stage can do, and parts of rl stages."""
        check_trained_stage(path, stage, config)
        refuse_parts(path, stage)

    def preflight(self, path: str, stage: StageSettings) -> None:
        """Builds optimizer, schedule and loss."""
        from lightning_mmrl.app.preflight import SFT_GIVES, preflight_target_loss, preflight_trained

        loss = stage.loss if isinstance(stage, SftSettings) else None
        preflight_trained(path, stage, SFT_GIVES if loss is None else (*SFT_GIVES, "loss"))
        if loss is not None:
            preflight_target_loss(f"{path}.loss", loss)

    def build(
        self, spec: StageSpec, inputs: Mapping[str, Path], directory: Path, run: TrackedRun, parts: "Assembly"
    ) -> StageJob:
        """Builds the job: a LightningModule, its data and its Trainer."""
        from lightning_mmrl.app.stages import training_job
        from lightning_mmrl.registry import targets

        def module(policy: "Policy", encoder: "PromptEncoder", common: dict[str, Any], resources: ExitStack) -> Any:
            stage, path = common["context"].settings, f"stages.{spec.name}"
            if isinstance(stage, SftSettings) and stage.loss is not None:
                common = {**common, "loss": targets.build(stage.loss, f"{path}.loss")}
            return targets.build({**stage.module, "_partial_": True}, f"{path}.module")(**common)

        return training_job(spec, inputs, directory, run, parts, module)


KIND = SupervisedKind()
