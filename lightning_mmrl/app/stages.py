"""Builds stages and evaluations from a validated configuration; knows every kind of part."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning_mmrl.algorithms.penalties.entropy import EntropyBonus
from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.app.assembly import Assembly
from lightning_mmrl.app.rewards import training_rewards
from lightning_mmrl.config.specs import flattened
from lightning_mmrl.curriculum.attempt import STATES
from lightning_mmrl.curriculum.lineage import facts_if_sealed
from lightning_mmrl.data.datamodules import Feed, OmniDataModule, eval_loader
from lightning_mmrl.data.exclusions import EXCLUSIONS, Exclusions
from lightning_mmrl.data.prepared import PreparedSet
from lightning_mmrl.data.sampler import Share
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.evaluation.intervals import ClusterBootstrap
from lightning_mmrl.models.export import export_policy
from lightning_mmrl.models.parallelize import recompute_activations
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.plain import TrackedRun
from lightning_mmrl.registry import targets
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.evaluate import EvaluatedSet, EvaluationModule
from lightning_mmrl.stages.rollout_table import RolloutTable
from lightning_mmrl.tracking.lightning_logger import RunLogger
from lightning_mmrl.training.callbacks.exact_state import ExactState
from lightning_mmrl.training.callbacks.progress import EvaluationProgress, StageProgress
from lightning_mmrl.training.checkpoint_io import SnapshotIO
from lightning_mmrl.training.finite_states import check_finite
from lightning_mmrl.training.job import LightningJob, raising_interrupts
from lightning_mmrl.training.loggers import file_loggers
from lightning_mmrl.training.state_store import StateStore
from lightning_mmrl.training.strategies import ranks_of, sharding_of
from lightning_mmrl.training.trainer import evaluation_trainer, prepare_process, training_trainer
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
        stage = config.stages[spec.name]
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
        title, say = self._title(spec), self._say(spec)
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

    def _say(self, spec: StageSpec) -> Callable[[str], None]:
        """Tells the user what happens in a stage."""
        return lambda message: self._assembly.console.say(f"{self._title(spec)}: {message}")

    def _datamodule(self, spec: StageSpec, stage: StageSettings, encoder: Any) -> OmniDataModule:
        parts, config = self._assembly, self._assembly.config
        feed = Feed(
            settings=stage,
            sources=stage.data.located(config.data.root),
            seed=config.seed + spec.index,
            matcher=parts.matcher,
        )
        node = stage.data.module or config.data.module
        path = f"stages.{spec.name}.data.module" if stage.data.module else "data.module"
        make = targets.build({**node, "_partial_": True}, path)
        return make(
            pipeline=parts.pipeline(encoder),
            template=parts.template,
            feed=feed,
            validation=parts.validation_feed() if stage.validate_every else None,
            monitor=parts.monitor,
            exclusions=parts.exclusions,
        )

    def _module(
        self,
        spec: StageSpec,
        stage: StageSettings,
        policy: Policy,
        encoder: Any,
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
                say=self._say(spec),
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


def build_algorithm(stage: StageSettings, make: Callable[..., Any], path: str) -> Algorithm:
    """The algorithm of an RL stage; null parts come from the module's preset."""
    assert stage.algorithm is not None
    settings, preset = stage.algorithm, make.func.default_algorithm  # type: ignore[attr-defined]
    if settings.critic is not None and preset.settings.critic is None:
        raise ConfigError(
            f"{path}.algorithm.critic is set, and {path}.module trains none; set it to null, or take "
            f"algorithm@{path}=ppo"
        )
    path = f"{path}.algorithm"
    parts = ("advantage", "loss", "aggregation", "correction", "select", "resample")
    built = {part: targets.optional(getattr(settings, part), f"{path}.{part}", getattr(preset, part)) for part in parts}
    schedules = {
        name: targets.optional(getattr(settings, name).schedule, f"{path}.{name}.schedule", WarmupConstant())
        for name in ("kl", "entropy")
    }
    return Algorithm(
        **built,
        kl=KLPenalty(settings.kl, schedules["kl"]),
        entropy=EntropyBonus(settings.entropy, schedules["entropy"]),
        settings=replace(settings, critic=settings.critic or preset.settings.critic),
    )


class CheckpointEvaluator:
    """Implements `Evaluator`: every configured set, and its ablations where they are asked for.

    Args:
        assembly: The parts of the run.
        last_stage: The stage that is evaluated without a modality as well.
        afresh: True for an evaluation that is no part of a run: it decides itself which samples are left out.
    """

    def __init__(self, assembly: Assembly, last_stage: str, *, afresh: bool = False) -> None:
        self._assembly = assembly
        self._last_stage = last_stage
        self._afresh = afresh

    def __call__(self, checkpoint: Path, directory: Path, stage: str, run: TrackedRun | None) -> Mapping[str, float]:
        """Metrics keyed `<set>/<metric>`."""
        parts, settings = self._assembly, self._assembly.config.evaluation
        if facts_if_sealed(checkpoint) is None and checkpoint.is_absolute() and not checkpoint.exists():
            raise StageError(f"checkpoint {checkpoint} does not exist; give a stage's handoff folder or a hub id")
        prepare_process(parts.config.trainer, parts.config.seed)
        with parts.group.first():
            encoder = parts.encoder(checkpoint)
            policy = parts.policy(checkpoint, encoder, 1.0)
            ablate = settings.ablation_stages == "all" or stage == self._last_stage
            variants = ["full", *(settings.ablations if ablate else [])]
            loaders = self._loaders(encoder, variants, self._exclusions(directory))
        module = EvaluationModule(
            policy,
            parts.evaluator(policy, encoder),
            sets=[_examined(name, loader.dataset) for name, loader in loaders.items()],
            directory=directory,
            bootstrap=ClusterBootstrap(settings=settings),
            ranks=ranks_of(parts.config.trainer),
            sharding=sharding_of(parts.config.trainer),
        )
        progress = EvaluationProgress(parts.console, f"evaluating {stage}")
        trainer = evaluation_trainer(parts.config.trainer, directory=directory, callbacks=[progress])
        with raising_interrupts():
            trainer.test(module, dataloaders=list(loaders.values()), verbose=False)
        if run is not None:
            run.log_artifact(directory, "evaluation")
        return {
            f"{name}/{key}": value
            for name, result in module.results.items()
            for key, value in result["metrics"].items()
        }

    def _exclusions(self, directory: Path) -> Exclusions:
        parts = self._assembly
        if not self._afresh:
            return parts.exclusions
        path = directory / EXCLUSIONS
        if parts.group.leads:
            path.unlink(missing_ok=True)
        return Exclusions(path, decides=parts.group.leads)

    def _loaders(self, encoder: Any, variants: list[str], exclusions: Exclusions) -> dict[str, Any]:
        parts, settings = self._assembly, self._assembly.config.evaluation
        pipeline = parts.pipeline(encoder)
        loaders = {}
        for name, manifest in settings.sets.items():
            samples = read_manifest(parts.data_root / manifest, parts.data_root)[: settings.limit]
            prepared = PreparedSet(
                samples,
                media_root=parts.data_root,
                pipeline=pipeline,
                template=parts.template,
                supervised=False,
                exclusions=exclusions,
            )
            prepared.prepare(manifest, parts.monitor)
            for variant in variants:
                loaders[name if variant == "full" else f"{name}-{variant}"] = eval_loader(
                    prepared,
                    batch_size=settings.batch_size,
                    pad_token_id=encoder.pad_token_id,
                    variant=variant,  # type: ignore[arg-type]
                    share=Share(rank=parts.group.rank, world_size=parts.group.world_size),
                )
        return loaders


def _examined(name: str, prepared: PreparedSet) -> EvaluatedSet:
    reasons = [each.reason for each in prepared.quarantined]
    left_out = tuple(zip(prepared.excluded, reasons, strict=True))
    return EvaluatedSet(name=name, num_samples=len(prepared), left_out=left_out)
