"""Builds stages and evaluations from a validated configuration; knows every kind of part."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lightning_mmrl.algorithms.penalties.entropy import EntropyBonus
from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.algorithms.phases import Limits, Phase
from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.app.assembly import Assembly, trainer_settings, training_sources
from lightning_mmrl.app.rewards import training_rewards
from lightning_mmrl.config.schema import StageConfig
from lightning_mmrl.config.specs import bound, flattened
from lightning_mmrl.curriculum.attempt import STATES
from lightning_mmrl.curriculum.lineage import facts_if_sealed
from lightning_mmrl.data.datamodules import Feed, OmniDataModule, eval_loader
from lightning_mmrl.data.exclusions import EXCLUSIONS, Exclusions
from lightning_mmrl.data.prepared import PreparedSet
from lightning_mmrl.data.sampler import ModalityDropout, Share
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.evaluation.intervals import ClusterBootstrap
from lightning_mmrl.models.export import export_policy
from lightning_mmrl.models.parallelize import recompute_activations
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.plain import TrackedRun
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.registry import targets
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.evaluate import EvaluationModule, ExaminedSet
from lightning_mmrl.stages.optimize import UpdateSettings
from lightning_mmrl.stages.rollout_table import PASS_COMPONENT, RolloutTable
from lightning_mmrl.stages.values import CriticSettings
from lightning_mmrl.tracking.lightning_logger import RunLogger
from lightning_mmrl.training.callbacks.exact_state import ExactState, SavingSettings
from lightning_mmrl.training.callbacks.progress import EvaluationProgress, StageProgress
from lightning_mmrl.training.checkpoint_io import SnapshotIO
from lightning_mmrl.training.finite_states import check_finite
from lightning_mmrl.training.job import LightningJob, raising_interrupts
from lightning_mmrl.training.loggers import file_loggers
from lightning_mmrl.training.state_store import StateStore
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
        settings = trainer_settings(stage.trainer)
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
        states = StateStore(directory / STATES, keep=config.state.keep, check=check_finite)
        io = SnapshotIO()
        saving = SavingSettings(every_n_steps=config.state.every_n_steps, in_background=config.state.in_background)
        saver = ExactState(states, parts.group.interruption, io, settings=saving, say=say)
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

    def _datamodule(self, spec: StageSpec, stage: StageConfig, encoder: PromptEncoder) -> OmniDataModule:
        parts, config = self._assembly, self._assembly.config
        feed = Feed(
            sources=training_sources(config, stage.data),
            batch_size=stage.data.batch_size,
            num_batches=stage.num_steps,
            seed=config.seed + spec.index,
            dropout=ModalityDropout(**asdict(stage.data.modality_dropout)),
            balance=stage.data.balance,  # type: ignore[arg-type]
            matcher=parts.matcher,
        )
        node = stage.data.module or config.data.module
        path = f"stages.{spec.name}.data.module" if stage.data.module else "data.module"
        make = targets.build({**node, "_partial_": True}, path)
        return make(
            pipeline=parts.pipeline(encoder),
            template=parts.template,
            kind=spec.kind,
            feed=feed,
            validation=parts.validation_feed() if stage.validate_every else None,
            monitor=parts.monitor,
            exclusions=parts.exclusions,
        )

    def _module(
        self,
        spec: StageSpec,
        stage: StageConfig,
        policy: Policy,
        encoder: PromptEncoder,
        directory: Path,
        resources: ExitStack,
        datamodule: OmniDataModule,
    ) -> Any:
        parts, settings = self._assembly, trainer_settings(stage.trainer)
        path = f"stages.{spec.name}"
        common = {
            "optimizer": OptimizerSettings(
                factory=targets.build(stage.optimizer, f"{path}.optimizer"),
                schedule=targets.build(stage.schedule, f"{path}.schedule"),
            ),
            "context": StageContext(
                name=spec.name,
                num_steps=stage.num_steps,
                seed=parts.config.seed + spec.index,
                directory=directory,
                stop_when=bound(stage.stop_when),
                cooldown_steps=stage.cooldown_steps,
                ranks=settings.ranks,
                sharding=settings.sharding,
                apart=parts.group.interruption.rank_local,
                refill=datamodule.refill_batch,
                num_validated=datamodule.num_validated,
                pass_part=PASS_COMPONENT if stage.rewards is None else stage.rewards.pass_part,
                max_bad_steps=stage.max_bad_steps,
                say=self._say(spec),
            ),
            "examiner": parts.examiner(policy, encoder) if stage.validate_every else None,
            "policy": policy,
        }
        make = targets.build({**stage.module, "_partial_": True}, f"{path}.module")
        if spec.kind == "sft":
            return make(**common)
        assert stage.sampling is not None
        assert stage.rewards is not None
        table = RolloutTable(
            directory / "rollouts", every=stage.rollout_table_every, pass_component=stage.rewards.pass_part
        )
        engine = parts.rollout_engine(policy, encoder, stage.sampling)
        resources.callback(engine.close)
        return make(
            engine=engine,
            rewards=resources.enter_context(training_rewards(stage.rewards, f"{path}.rewards")),
            algorithm=build_algorithm(stage, make, path),
            table=table,
            **common,
        )


def build_algorithm(stage: StageConfig, make: Callable[..., Any], path: str) -> Algorithm:
    """The algorithm of an RL stage; null parts come from the module's preset."""
    assert stage.algorithm is not None
    settings, preset = stage.algorithm, make.func.default_algorithm  # type: ignore[attr-defined]
    update = UpdateSettings(**asdict(settings.update), max_grad_norm=stage.max_grad_norm)
    if settings.critic is not None and preset.critic is None:
        raise ConfigError(
            f"{path}.algorithm.critic is set, and {path}.module trains none; set it to null, or take "
            f"algorithm@{path}=ppo"
        )
    path = f"{path}.algorithm"
    kl, entropy = asdict(settings.kl), asdict(settings.entropy)
    for name, values in (("kl", kl), ("entropy", entropy)):
        values["schedule"] = targets.optional(values["schedule"], f"{path}.{name}.schedule", WarmupConstant())
    return Algorithm(
        advantage=targets.optional(settings.advantage, f"{path}.advantage", preset.advantage),
        loss=targets.optional(settings.loss, f"{path}.loss", preset.loss),
        aggregation=targets.optional(settings.aggregation, f"{path}.aggregation", preset.aggregation),
        correction=targets.optional(settings.correction, f"{path}.correction", None),
        group_size=settings.group_size,
        mask_truncated=settings.mask_truncated,
        phases=[
            Phase(
                after=phase.after,
                limits=Limits(
                    group_size=phase.group_size, max_new_tokens=phase.max_new_tokens, temperature=phase.temperature
                ),
            )
            for phase in settings.phases.values()
        ],
        select=targets.optional(settings.select, f"{path}.select", None),
        max_samplings=settings.max_samplings,
        select_after=settings.select_after,
        distill=targets.optional(settings.distill, f"{path}.distill", None),
        kl=KLPenalty(**kl),
        entropy=EntropyBonus(**entropy),
        critic=preset.critic if settings.critic is None else CriticSettings(**asdict(settings.critic)),
        update=update,
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
        prepare_process(parts.trainer_settings, parts.config.seed)
        with parts.group.first():
            encoder = parts.encoder(checkpoint)
            policy = parts.policy(checkpoint, encoder, 1.0)
            ablate = settings.ablation_stages == "all" or stage == self._last_stage
            variants = ["full", *(settings.ablations if ablate else [])]
            loaders = self._loaders(encoder, variants, self._exclusions(directory))
        module = EvaluationModule(
            policy,
            parts.examiner(policy, encoder),
            sets=[_examined(name, loader.dataset) for name, loader in loaders.items()],
            directory=directory,
            bootstrap=ClusterBootstrap(num_resamples=settings.num_resamples),
            ranks=parts.trainer_settings.ranks,
            sharding=parts.trainer_settings.sharding,
        )
        progress = EvaluationProgress(parts.console, f"evaluating {stage}")
        trainer = evaluation_trainer(parts.trainer_settings, directory=directory, callbacks=[progress])
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

    def _loaders(self, encoder: PromptEncoder, variants: list[str], exclusions: Exclusions) -> dict[str, Any]:
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


def _examined(name: str, prepared: PreparedSet) -> ExaminedSet:
    reasons = [each.reason for each in prepared.quarantined]
    left_out = tuple(zip(prepared.excluded, reasons, strict=True))
    return ExaminedSet(name=name, num_samples=len(prepared), left_out=left_out)
