"""Builds training stages from a validated configuration."""

from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lightning_mmrl.app.algorithm import build_algorithm
from lightning_mmrl.app.assembly import Assembly
from lightning_mmrl.app.rewards import training_rewards
from lightning_mmrl.config.epochs import with_steps
from lightning_mmrl.config.specs import flattened
from lightning_mmrl.curriculum.attempt import STATES
from lightning_mmrl.data.datamodules import Feed, OmniDataModule, ValidationFeed
from lightning_mmrl.models.export import export_policy
from lightning_mmrl.models.parallelize import recompute_activations
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.plain import TrackedRun
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.registry import targets
from lightning_mmrl.settings.data import SourceSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.rollout_table import RolloutTable
from lightning_mmrl.tracking.lightning_logger import RunLogger
from lightning_mmrl.training.callbacks.exact_state import ExactState
from lightning_mmrl.training.callbacks.progress import StageProgress
from lightning_mmrl.training.checkpoint_io import SnapshotIO
from lightning_mmrl.training.finite_states import check_finite
from lightning_mmrl.training.job import LightningJob
from lightning_mmrl.training.loggers import file_loggers
from lightning_mmrl.training.state_store import StateStore
from lightning_mmrl.training.strategies import ranks_of, sharding_of
from lightning_mmrl.training.trainer import prepare_process, training_trainer
from lightning_mmrl.types.records import StageSpec


class StageBuilder:
    """Implements `StageFactory` for stages that are LightningModules."""

    def __init__(self, assembly: Assembly, specs: list[StageSpec]) -> None:
        self._assembly = assembly
        self._num_stages = len(specs)

    def __call__(self, spec: StageSpec, start_from: Path, directory: Path, run: TrackedRun) -> LightningJob:
        """Builds one stage and prepares its data, on rank 0 first."""
        with self._assembly.group.first():
            job = self._build(spec, start_from, directory, run)
            job.datamodule.prepare_data()
        return job

    def _build(self, spec: StageSpec, start_from: Path, directory: Path, run: TrackedRun) -> LightningJob:
        parts, config = self._assembly, self._assembly.config
        stage = with_steps(config, spec.name)
        settings = stage.trainer
        prepare_process(settings, config.seed + spec.index)
        temperature = stage.sampling.temperature if stage.sampling is not None else 1.0
        encoder = parts.encoder(start_from)
        policy = parts.policy(start_from, encoder, temperature)
        policy.freeze(stage.freeze)
        if stage.adapter is not None:
            parts.adapt(policy, stage.adapter, spec.name)
        policy.media.cache = parts.feature_cache(spec.name, policy.media)
        if settings.activation_checkpointing:
            recompute_activations(policy)
        datamodule = self._datamodule(spec, stage, encoder)
        resources = ExitStack()
        module = self._module(spec, stage, policy, encoder, directory, resources, datamodule)
        title = self._title(spec)

        def say(message: str) -> None:
            parts.console.say(f"{title}: {message}")

        run.log_params(flattened(asdict(stage)))
        states = StateStore(directory / STATES, settings=config.state, check=check_finite)
        io = SnapshotIO()
        saver = ExactState(states, parts.group.interruption, io, settings=config.state, say=say)
        trainer = training_trainer(
            settings,
            directory=directory,
            logger=[RunLogger(run, directory), *file_loggers(config.tracking.loggers, directory)],
            callbacks=[StageProgress(parts.console, title), saver],
            validate_every=stage.validate_every if config.data.validation else None,
            gradient_clip_val=stage.max_grad_norm if module.automatic_optimization else None,
            checkpoint_io=io,
        )
        return LightningJob(
            trainer=trainer,
            module=module,
            datamodule=datamodule,
            exporter=partial(
                export_policy, policy, encoder.processor, started_from=str(start_from), ranks=parts.group.ranks
            ),
            states=states,
            group=parts.group,
            saver=saver,
            say=say,
            resources=resources,
        )

    def _title(self, spec: StageSpec) -> str:
        return f"stage {spec.index + 1} of {self._num_stages} {spec.name}"

    def _datamodule(self, spec: StageSpec, stage: StageSettings, encoder: PromptEncoder) -> OmniDataModule:
        parts, config = self._assembly, self._assembly.config
        feed = Feed(
            settings=stage,
            sources=stage.data.located(config.data.root),
            seed=config.seed + spec.index,
            matcher=parts.matcher,
        )
        validation, data = None, config.data
        if stage.validate_every and data.validation is not None:
            source = SourceSettings(manifest=data.validation, root=data.root, limit=data.validation_limit)
            validation = ValidationFeed(source=source, settings=config.evaluation)
        node = stage.data.module or data.module
        path = f"stages.{spec.name}.data.module" if stage.data.module else "data.module"
        make = targets.build({**node, "_partial_": True}, path)
        return make(
            pipeline=parts.pipeline(encoder),
            template=parts.template,
            feed=feed,
            validation=validation,
            monitor=parts.monitor,
            exclusions=parts.exclusions,
        )

    def _module(
        self,
        spec: StageSpec,
        stage: StageSettings,
        policy: Policy,
        encoder: PromptEncoder,
        directory: Path,
        resources: ExitStack,
        datamodule: OmniDataModule,
    ) -> Any:
        parts = self._assembly
        path = f"stages.{spec.name}"
        common = {
            "optimizer": OptimizerSettings(
                factory=targets.build(stage.optimizer, f"{path}.optimizer"),
                schedule=targets.build(stage.schedule, f"{path}.schedule"),
            ),
            "context": StageContext(
                name=spec.name,
                settings=stage,
                seed=parts.config.seed + spec.index,
                directory=directory,
                ranks=ranks_of(stage.trainer),
                sharding=sharding_of(stage.trainer),
                rank_local=parts.group.interruption.rank_local,
                refill=datamodule.refill_batch,
                num_validated=datamodule.num_validated,
                say=lambda message: parts.console.say(f"{self._title(spec)}: {message}"),
            ),
            "evaluator": parts.evaluator(policy, encoder) if stage.validate_every else None,
            "policy": policy,
        }
        make = targets.build({**stage.module, "_partial_": True}, f"{path}.module")
        if stage.kind == "sft":
            return make(**common)
        assert stage.sampling is not None
        assert stage.rewards is not None
        table = RolloutTable(directory / "rollouts", stage)
        engine = parts.rollout_engine(policy, encoder, stage.sampling)
        resources.callback(engine.close)
        return make(
            engine=engine,
            rewards=resources.enter_context(training_rewards(stage.rewards, f"{path}.rewards")),
            algorithm=build_algorithm(stage, make, path),
            table=table,
            **common,
        )
