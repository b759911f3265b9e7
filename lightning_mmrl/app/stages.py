"""Builds the job of a stage from a validated configuration, by the kind of the stage."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning_mmrl.app.assembly import Assembly
from lightning_mmrl.app.best import best_weights
from lightning_mmrl.app.budget import stage_budget
from lightning_mmrl.app.costs import rates
from lightning_mmrl.app.idle import IdleJob, hand_on
from lightning_mmrl.config.epochs import with_steps
from lightning_mmrl.config.specs import flattened
from lightning_mmrl.curriculum.artifacts import sealed
from lightning_mmrl.curriculum.attempt import STATES
from lightning_mmrl.curriculum.graph import SOURCES
from lightning_mmrl.data.datamodules import Feed, OmniDataModule, ValidationFeed
from lightning_mmrl.data.prepared import TargetTokens
from lightning_mmrl.data.rollout_table import table_files
from lightning_mmrl.errors import StageError
from lightning_mmrl.models.export import export_policy
from lightning_mmrl.models.parallelize import recompute_activations
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.plain import StageJob, TrackedRun
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.registry import targets
from lightning_mmrl.registry.kinds import kind_of
from lightning_mmrl.settings.data import SourceSettings
from lightning_mmrl.settings.rollout import lag_of
from lightning_mmrl.settings.run import RunSettings, data_key
from lightning_mmrl.settings.stage import NodeSettings, StageSettings
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.costs import CostMeter
from lightning_mmrl.suggestions import shown
from lightning_mmrl.tracking.lightning_logger import RunLogger
from lightning_mmrl.training.callbacks.exact_state import ExactState
from lightning_mmrl.training.callbacks.progress import StageProgress
from lightning_mmrl.training.checkpoint_io import SnapshotIO
from lightning_mmrl.training.finite_states import check_finite
from lightning_mmrl.training.job import LightningJob
from lightning_mmrl.training.loggers import file_loggers
from lightning_mmrl.training.memory import free_memory
from lightning_mmrl.training.state_store import StateStore
from lightning_mmrl.training.strategies import ranks_of, sharding_of
from lightning_mmrl.training.trainer import prepare_process, training_trainer
from lightning_mmrl.types.records import WEIGHTS, StageSpec

MakeModule = Callable[[Policy, PromptEncoder, dict[str, Any], ExitStack], Any]
"""Makes the LightningModule of a stage from its policy and encoder, from the arguments that all modules take, and from
a stack that closes resources when training ends."""


class StageBuilder:
    """Implements `StageFactory`: each stage is built by its kind."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly

    def __call__(self, spec: StageSpec, inputs: Mapping[str, Path], directory: Path, run: TrackedRun) -> StageJob:
        """Builds one stage and reads its manifests, on rank 0 first."""
        free_memory()
        with self._assembly.group.first():
            kind, parts = kind_of(spec.settings, f"stages.{spec.name}"), self._assembly.of_stage(spec.settings)
            return kind.build(spec, inputs, directory, run, parts)


def training_job(
    spec: StageSpec,
    inputs: Mapping[str, Path],
    directory: Path,
    run: TrackedRun,
    parts: Assembly,
    make_module: MakeModule,
) -> StageJob:
    """Builds the job of a stage that trains; if all its data are empty, the job hands on the weights as they are."""
    config, start_from = parts.config, inputs[WEIGHTS]
    sources = data_sources(spec, inputs, config)
    if not sources and located_sources(spec, inputs, config):
        run.log_params(flattened(asdict(spec.settings)))
        return IdleJob(write=lambda artifact, directory: hand_on(start_from, directory, parts))
    stage = with_steps(config, spec.name, sources.values())
    budget = stage_budget(config, spec.name, directory)
    prepare_process(stage.trainer, spec.seed)
    encoder = parts.encoder(start_from)
    policy = stage_policy(spec.name, stage, start_from, encoder, parts)
    datamodule = _datamodule(spec, stage, sources, encoder, parts, endless=budget is not None)
    title, resources = parts.title(spec), ExitStack()

    def say(message: str) -> None:
        parts.console.say(f"{title}: {message}")

    costs = CostMeter(rates(parts.config, stage, str(start_from)))
    common = _common(spec, stage, policy, encoder, directory, datamodule, parts)
    common["context"] = replace(common["context"], costs=costs, budget=budget)
    module = make_module(policy, encoder, common, resources)
    run.log_params(flattened(asdict(stage)))
    flush = parts.exclusions.flush
    states = StateStore(directory / STATES, settings=config.state, check=check_finite, before=flush)
    io = SnapshotIO(copies=config.state.in_background)
    saver = ExactState(states, parts.group.interruption, io, settings=config.state, say=say, timed=costs.phase)
    ranks = parts.group.ranks

    def export(artifact: str, place: Path) -> Mapping[str, Any]:
        return job.export(artifact, place)

    keeper = [best_weights(spec, inputs, directory, export, ranks)] if stage.keep_best else []
    trainer = training_trainer(
        stage.trainer,
        directory=directory,
        logger=[RunLogger(run, directory), *file_loggers(config.tracking.loggers, directory)],
        callbacks=[StageProgress(parts.console, title), *keeper, saver, *parts.callbacks(spec.name)],
        validate_every=stage.validate_every if config.data.validation else None,
        gradient_clip_val=stage.max_grad_norm if module.automatic_optimization else None,
        checkpoint_io=io,
    )
    exporter = partial(export_policy, policy, encoder, started_from=str(start_from), ranks=ranks)
    job = LightningJob(
        trainer=trainer,
        module=module,
        datamodule=datamodule,
        exporter=exporter,
        facts=parts.facts(),
        states=states,
        group=parts.group,
        saver=saver,
        say=say,
        resources=resources,
    )
    return job


def data_sources(spec: StageSpec, inputs: Mapping[str, Path], config: RunSettings) -> dict[str, SourceSettings]:
    """Maps names to the sources of a stage's data; a source that another stage made without a sample is left out."""
    found = located_sources(spec, inputs, config)
    folders = {name: inputs[f"{SOURCES}{name}"] for name in found if f"{SOURCES}{name}" in inputs}
    empty = {name for name, folder in folders.items() if is_empty(data_facts(folder, config))}
    return {name: source for name, source in found.items() if name not in empty}


def located_sources(spec: StageSpec, inputs: Mapping[str, Path], config: RunSettings) -> dict[str, SourceSettings]:
    """Maps names to the sources of a stage's data; a source that another stage made is in that stage's artifact."""
    made = {}
    for name in spec.settings.data.sources:
        folder = inputs.get(f"{SOURCES}{name}")
        if folder is not None:
            made[name] = made_manifest(folder, config)
    return spec.settings.data.located(config.dataset(spec.settings.data.dataset), made)


def data_facts(folder: Path, config: RunSettings) -> dict[str, Any]:
    """Returns the facts in the seal of data that a stage made, after checking them.

    Raises:
        StageError: A fact is missing or has a value that no stage of this configuration writes: the manifest must be a
            sealed file, and media must be in a folder of the configuration or in the artifact itself.
    """
    return _checked_facts(folder, config, has_manifest=True)


def made_manifest(folder: Path, config: RunSettings) -> SourceSettings:
    """Returns the source of samples that a stage made.

    Raises:
        StageError: As `data_facts`.
    """
    facts = data_facts(folder, config)
    return SourceSettings(manifest=facts["manifest"], root=str(folder), media_root=facts["media_root"])


def is_empty(facts: Mapping[str, Any]) -> bool:
    """Whether data that a stage made hold no sample, by the facts in their seal."""
    return facts["counts"]["kept"] == 0


def made_table(folder: Path, config: RunSettings) -> tuple[list[Path], str]:
    """Returns the files of a rollout table that a stage made, none if it is empty, and the folder of its media.

    Raises:
        DataError: The folder holds no table.
        StageError: As `data_facts`.
    """
    facts = _checked_facts(folder, config, has_manifest=False)
    return [] if is_empty(facts) else table_files(folder), facts["media_root"]


def _checked_facts(folder: Path, config: RunSettings, *, has_manifest: bool) -> dict[str, Any]:
    facts = sealed(folder)
    manifest, counts, media = (facts.get(key) for key in ("manifest", "counts", "media_root"))
    counted = isinstance(counts, Mapping) and all(isinstance(number, int) for number in counts.values())
    places = {folder.resolve(), *(Path(place).resolve() for place in config.media_roots)}
    rules = {
        "manifest": not has_manifest or (isinstance(manifest, str) and manifest in facts["files"]),
        "counts": counted and isinstance(counts, Mapping) and "kept" in counts,
        "media_root": isinstance(media, str) and Path(media).resolve() in places,
    }
    for key, holds in rules.items():
        if not holds:
            raise StageError(
                f"{folder} has {key} {shown(facts.get(key))} in its seal, which no stage of this run writes; run the "
                "stage again"
            )
    return facts


def data_module(path: str, stage: NodeSettings, config: RunSettings) -> type[OmniDataModule]:
    """Returns the class of a stage's DataModule, which says what media samples may have; `path` is the stage's key."""
    return _module_of_data(path, stage, config).func


def _module_of_data(path: str, stage: NodeSettings, config: RunSettings) -> Any:
    name = stage.data.dataset
    key = f"{path}.data.module" if stage.data.module else f"{data_key(name)}.module"
    node = stage.data.module or config.dataset(name).module
    return targets.build({**node, "_partial_": True}, key)


def stage_policy(
    name: str, stage: StageSettings, start_from: Path | str, encoder: PromptEncoder, parts: Assembly
) -> Policy:
    """The policy of a stage that trains, from a checkpoint: with the stage's adapter, and with frozen groups."""
    temperature = stage.sampling.temperature if stage.sampling is not None else 1.0
    policy = parts.policy(start_from, encoder, temperature, stage.trainer)
    policy.freeze(stage.freeze)
    if stage.adapter is not None:
        parts.adapt(policy, stage.adapter, name)
    if stage.trainer.mixed:
        policy.keep_masters()
    policy.media.cache = parts.feature_cache(name, policy.media)
    if stage.trainer.activation_checkpointing:
        recompute_activations(policy)
    return policy


def _datamodule(
    spec: StageSpec,
    stage: StageSettings,
    sources: Mapping[str, SourceSettings],
    encoder: PromptEncoder,
    parts: Assembly,
    *,
    endless: bool = False,
) -> OmniDataModule:
    data = parts.config.data
    feed = Feed(
        settings=stage,
        supervised=kind_of(stage, f"stages.{spec.name}").supervised,
        sources=sources,
        seed=spec.seed,
        matcher=parts.matcher,
        endless=endless,
        num_upcoming=0 if stage.algorithm is None else lag_of(parts.config.rollout),
    )
    validation = None
    if stage.validate_every and data.validation is not None:
        limit, media = data.validation_limit, data.media_root
        source = SourceSettings(manifest=data.validation, root=data.root, media_root=media, limit=limit)
        validation = ValidationFeed(source=source, settings=parts.config.evaluation)
    return _module_of_data(f"stages.{spec.name}", stage, parts.config)(
        pipeline=parts.pipeline(encoder),
        template=parts.template,
        feed=feed,
        validation=validation,
        monitor=parts.monitor,
        exclusions=parts.exclusions,
        ranks=ranks_of(stage.trainer),
        read_ahead=data.media,
    )


def _common(
    spec: StageSpec,
    stage: StageSettings,
    policy: Policy,
    encoder: PromptEncoder,
    directory: Path,
    datamodule: OmniDataModule,
    parts: Assembly,
) -> dict[str, Any]:
    """Returns the arguments that the LightningModules of all stages take."""
    path, title = f"stages.{spec.name}", parts.title(spec)
    return {
        "policy": policy,
        "optimizer": OptimizerSettings(
            factory=targets.build(stage.optimizer, f"{path}.optimizer"),
            schedule=targets.build(stage.schedule, f"{path}.schedule"),
        ),
        "context": StageContext(
            name=spec.name,
            settings=stage,
            seed=spec.seed,
            directory=directory,
            ranks=ranks_of(stage.trainer),
            sharding=sharding_of(stage.trainer),
            rank_local=parts.group.interruption.rank_local,
            refill=datamodule.refill_batch,
            upcoming=datamodule.upcoming,
            num_validated=datamodule.num_validated,
            waited_s=datamodule.waited_s,
            target_tokens=TargetTokens(encoder, parts.template),
            say=lambda message: parts.console.say(f"{title}: {message}"),
        ),
        "evaluator": parts.evaluator(policy, encoder) if stage.validate_every else None,
    }
