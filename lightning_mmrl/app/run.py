"""One run of a curriculum: its folder, its tracker, its orchestrator and its report."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lightning_mmrl.app.assembly import Assembly, quiet_libraries
from lightning_mmrl.app.budget import check_sizes
from lightning_mmrl.app.data_checks import check_data, check_made
from lightning_mmrl.app.evaluation import CheckpointEvaluator
from lightning_mmrl.app.leader import Follower, Leader
from lightning_mmrl.app.preflight import check_schedules, preflight
from lightning_mmrl.app.published import describe, publish
from lightning_mmrl.app.run_folder import LOCK, locked, writable
from lightning_mmrl.app.run_page import RunPage
from lightning_mmrl.app.stages import StageBuilder
from lightning_mmrl.app.starts import note_start
from lightning_mmrl.app.trackers import open_tracker, origin
from lightning_mmrl.config.budget import uncounted
from lightning_mmrl.config.epochs import with_steps
from lightning_mmrl.config.specs import base_evaluation, manifest_digests, stage_specs
from lightning_mmrl.curriculum.callbacks import Callbacks
from lightning_mmrl.curriculum.compare import Comparison, compare_stages
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.curriculum.orchestrator import Curriculum, StageOrchestrator
from lightning_mmrl.curriculum.safety import told_what_is_safe
from lightning_mmrl.curriculum.selection import Selection
from lightning_mmrl.data.sources import num_rows, source_digest
from lightning_mmrl.errors import GateError
from lightning_mmrl.evaluation.intervals import ClusterBootstrap
from lightning_mmrl.files import write_json, write_whole
from lightning_mmrl.protocols.plain import TrackedRun
from lightning_mmrl.registry import targets
from lightning_mmrl.registry.own_code import FLAG, opened_now
from lightning_mmrl.registry.tasks import built_tasks, task_of_result
from lightning_mmrl.rollout.vllm.readiness import require_engine
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import BASE
from lightning_mmrl.stages.evaluate import SUMMARY
from lightning_mmrl.tracking.mlflow import MlflowTracker
from lightning_mmrl.training.console import ConsoleProgress
from lightning_mmrl.training.group import RankGroup
from lightning_mmrl.types.records import WEIGHTS, StageResult, StageSpec
from lightning_mmrl.types.redaction import redacted_tree


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A finished run: its folder, its stages and how they compare."""

    directory: Path
    tracking_uri: str | None
    results: list[StageResult]
    comparison: Comparison
    ended_by_gate: str | None = None


def run_curriculum(
    config: RunSettings,
    console: ConsoleProgress,
    selection: Selection | None = None,
    group: RankGroup | None = None,
    callbacks: Callable[[str], Sequence[Any]] = lambda stage: (),
    command: Sequence[str] = (),
) -> FinishedRun | None:
    """Runs or continues the configured curriculum.

    Every rank of `group` must call this function; without a group, this process runs alone. `callbacks` gives further
    callbacks for the Trainer of each stage that trains or samples. `command` holds the arguments of `mmrl`, which the
    tracker shows.

    Returns:
        The finished run on rank 0; None on the others.

    Raises:
        MmrlError: The run failed; the message is one sentence. Faults of the configuration are raised before anything
            is written.
    """
    quiet_libraries()
    check_all_targets(config)
    require_engine(config)
    parts = Assembly(config=config, console=console, group=group or RankGroup(), callbacks=callbacks)
    with parts.group.first():
        directory = writable(Path(config.output_dir)) / config.run_name
        parts.ensure_data()
        check_sizes(config)
    for name in config.trained:
        check_schedules(f"stages.{name}", with_steps(config, name, say=parts.console.say))
    with parts.group.first():  # the other ranks find the indexes of large manifests
        warnings = check_data(config, parts.console.update)
    for warning in warnings:
        parts.console.say(f"warning: {warning}")
    specs = stage_specs(config, manifest_digests(config))
    for spec in specs:
        if spec.settings.checkpoint is not None:
            parts.starting_point(spec)  # refuses a wrong path before anything trains
    build, evaluate = StageBuilder(parts), CheckpointEvaluator(parts, _last_trained(specs))
    if not parts.group.leads:
        Follower(parts.group, specs, build, evaluate).run()
        return None
    with Leader(parts.group, build, evaluate) as leader:
        return _lead(parts, specs, directory, leader, selection, command)


def _lead(
    parts: Assembly,
    specs: Sequence[StageSpec],
    directory: Path,
    leader: Leader,
    selection: Selection | None,
    command: Sequence[str] = (),
) -> FinishedRun:
    """Runs the curriculum on rank 0, the only rank that decides, writes and tracks."""
    config = parts.config
    begun = False
    curriculum = Curriculum(
        name=config.run_name, stages=specs, base=parts.starting_point, base_evaluation=base_evaluation(config)
    )

    compared: list[tuple[object, Comparison]] = []

    def compare() -> Comparison:
        """Compares the stages, unless nothing was evaluated since."""
        manifest = Manifest.read(directory)
        if not compared or compared[-1][0] != (manifest.stages, manifest.base):
            found = _compare(config, specs, directory, orchestrator.finished())
            write_json(directory / "comparison.json", found.plain())
            compared.append(((manifest.stages, manifest.base), found))
        return compared[-1][1]

    def start(parent: TrackedRun) -> None:
        nonlocal begun
        begun = True
        describe_run(config, parent, directory / "config.yaml")
        describe(config, parent, directory, command)

    page = RunPage(
        directory=directory, compare=compare, publish=partial(publish, config, directory), say=parts.console.say
    )
    orchestrator = StageOrchestrator(
        curriculum,
        directory,
        build_stage=leader.build_stage,
        evaluate=leader.evaluate,
        tracker=lambda: open_tracker(config, origin(command)),
        callbacks=Callbacks(
            on_start=start, on_made=partial(check_made, config, specs), on_evaluated=page.refresh, on_end=page.write
        ),
        say=parts.console.say,
    )
    ended_by_gate = None
    with told_what_is_safe(directory, specs), locked(directory / LOCK):
        try:
            results = orchestrator.run(selection)
        except GateError as error:
            results, ended_by_gate = orchestrator.finished(), str(error)
        except BaseException:
            if begun:  # a command that is refused leaves the folder as it is
                page.refresh()
            raise
        if sentence := uncounted(config):
            parts.console.say(sentence)
        note_report(config, directory)
        comparison = compare()
        page.write()
    return FinishedRun(
        directory=directory,
        tracking_uri=config.tracking.uri,
        results=results,
        comparison=comparison,
        ended_by_gate=ended_by_gate,
    )


def _last_trained(specs: Sequence[StageSpec]) -> str:
    """Returns the name of the last stage that makes weights; empty if none does."""
    return next((spec.name for spec in reversed(specs) if spec.trains), "")


def _compare(
    config: RunSettings, specs: Sequence[StageSpec], directory: Path, results: Sequence[StageResult]
) -> Comparison:
    """Compares each evaluated stage with the stage whose weights it started from."""
    made = {result.name: result.handoff for result in results if result.handoff is not None}
    places = {name: (directory / handoff.path).with_name("evaluation") for name, handoff in made.items()}
    folders = {name: folder for name, folder in places.items() if (folder / SUMMARY).is_file()}
    inputs = {result.name: result.inputs for result in results}
    digests = {name: handoff.digest for name, handoff in made.items()}
    base = Manifest.read(directory).base
    if base is not None and base.evaluation == base_evaluation(config) and (directory / base.path / SUMMARY).is_file():
        folders, digests = {BASE: directory / base.path} | folders, digests | {BASE: base.digest}
    sources: dict[str, str | None] = {}
    for spec in specs:
        source = spec.source or BASE
        if spec.name in folders and source in folders:
            sources[spec.name] = source if digests[source] == inputs[spec.name][WEIGHTS] else None
    bootstrap = ClusterBootstrap(settings=config.evaluation)
    return compare_stages(folders, sources, partial(task_of_result, tasks=built_tasks(config)), bootstrap)


def check_all_targets(config: RunSettings) -> None:
    """Binds every `_target_` and builds cheap components before anything is loaded or written.

    Raises:
        ConfigError: A target does not exist, cannot serve its key, lacks a configured parameter, or refuses a value.
    """
    for name in config.order:
        targets.check_targets(asdict(config.stages[name]), f"stages.{name}")
    targets.check_targets(asdict(config.model), "model")
    targets.check_targets(asdict(config.data), "data")
    targets.check_targets({name: asdict(data) for name, data in config.datasets.items()}, "datasets")
    targets.check_targets(asdict(config.tracking), "tracking")
    targets.check_targets(asdict(config.evaluation), "evaluation")
    preflight(config)


def note_report(config: RunSettings, directory: Path) -> None:
    """If every stage was reused, links the empty run that `mlflow run` opened to the tracked run with the results."""
    trained = Manifest.read(directory).tracking_id
    here = os.environ.get("MLFLOW_RUN_ID")
    if config.tracking.uri is None or trained is None or here in (None, "", trained):
        return
    tracker = open_tracker(config)
    if isinstance(tracker, MlflowTracker):
        tracker.note_report(trained)
    tracker.close()


def describe_run(config: RunSettings, parent: TrackedRun, resolved: Path) -> None:
    """Writes the resolved configuration, without credentials, and tells the tracker about it and about the data."""
    # The comment only informs the reader; loading the file does not allow any code of the user's own.
    opened = f"# run with {FLAG} {','.join(opened_now())}\n" if opened_now() else ""
    write_whole(resolved, opened + OmegaConf.to_yaml(redacted_tree(asdict(config))))
    note_start(resolved.parent)
    parent.log_artifact(resolved, "config")
    kept = Path(config.data.media.cache_dir)
    for context, (root, manifest, form) in manifests(config).items():
        path = root / manifest
        profile: dict[str, Any] = {"num_samples": num_rows(path, form, kept)}
        parent.log_dataset(manifest, source_digest(path, form, kept) or "", str(path), context, profile)


def manifests(config: RunSettings) -> dict[str, tuple[Path, str, str | None]]:
    """Maps each use of a manifest (a stage, the validation, an evaluation set) to its folder, file name and format."""
    found: dict[str, tuple[Path, str, str | None]] = {}
    for name in config.order:
        stage = config.stages[name]
        sources = stage.data.located(config.dataset(stage.data.dataset))
        for key, source in sources.items():
            if source.manifest:  # no other stage makes these data
                found[name if len(sources) == 1 else f"{name}/{key}"] = source.folder, source.manifest, source.format
    for name, data in {"": config.data, **config.datasets}.items():
        if data.validation is not None:
            found[f"{name}/validation".lstrip("/")] = Path(data.root), data.validation, None
    return found | {name: (each.path.parent, each.path.name, each.format) for name, each in config.sets().items()}
