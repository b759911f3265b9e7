"""Chains stages: each starts from a hand-over on disk, is tracked, evaluated, and written down as finished."""

import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_mmrl.curriculum.changes import describe_changes
from lightning_mmrl.curriculum.handoff import check_handoff, folder_digest, write_handoff
from lightning_mmrl.curriculum.manifest import FinishedStage, Manifest
from lightning_mmrl.curriculum.spec import source_stage
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.protocols.plain import Evaluator, StageFactory, TrackedRun, Tracker
from lightning_mmrl.types.records import StageResult, StageSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which stages a call runs.

    Attributes:
        from_stage: Run this stage and all after it, again if they are finished; those before must be finished.
        only_stage: Run this stage alone, again if it is finished; the one it starts from must be finished.
        allow_changes: Keep finished stages whose configuration has changed since, instead of refusing the run.
    """

    from_stage: str | None = None
    only_stage: str | None = None
    allow_changes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Curriculum:
    """What to run: the stages in order, the folder of the base model, and facts that every hand-over carries."""

    name: str
    stages: Sequence[StageSpec]
    base: Callable[[], Path]
    facts: Mapping[str, Any]


class StageOrchestrator:
    """Runs a curriculum in a run directory; the same call again skips what is finished and unchanged.

    Args:
        curriculum: What to run.
        directory: The run directory; `manifest.json` in it says which stage is where.
        build_stage: Makes a stage ready to run.
        evaluate: Evaluates a hand-over.
        tracker: Tracks the run.
        on_start: Called with the opened parent run before the first pending stage.
        say: Tells the user what happens.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        directory: Path,
        *,
        build_stage: StageFactory,
        evaluate: Evaluator,
        tracker: Callable[[], Tracker],
        on_start: Callable[[TrackedRun], None],
        say: Callable[[str], None] = print,
    ) -> None:
        self._curriculum = curriculum
        self._directory = directory
        self._build_stage = build_stage
        self._evaluate = evaluate
        self._open_tracker = tracker
        self._on_start = on_start
        self._say = say

    def run(self, selection: Selection | None = None) -> list[StageResult]:
        """Runs what is not finished yet, or what is selected, and returns the results of the finished stages in order.

        Raises:
            ConfigError: A finished stage was configured differently, or the selection cannot run.
            StageError: A hand-over is missing or changed, or a gate is not met.
        """
        selection = selection or Selection()
        manifest = Manifest.read(self._directory)
        chosen = self._chosen(selection, manifest)
        self._refuse_changes(manifest, chosen, selection)
        for spec in self._curriculum.stages:
            if spec.name not in chosen and spec.name in manifest.stages:
                self._say(f"stage {spec.index + 1} of {len(self._curriculum.stages)} {spec.name}: already finished")
        if chosen:
            self._run_chosen(manifest, chosen)
            manifest = Manifest.read(self._directory)
        else:
            for spec in self._curriculum.stages:
                self._check_gate(spec, manifest)
        finished = [spec for spec in self._curriculum.stages if spec.name in manifest.stages]
        return [manifest.stages[spec.name].result for spec in finished]

    def _chosen(self, selection: Selection, manifest: Manifest) -> dict[str, StageSpec]:
        """The stages to run, in order: those selected, else those that are not finished or whose input is not."""
        stages = self._curriculum.stages
        names = [spec.name for spec in stages]
        for flag, name in (("--from-stage", selection.from_stage), ("--only-stage", selection.only_stage)):
            if name is not None and name not in names:
                raise ConfigError(f"{flag} {name}: no such stage; order has {', '.join(names)}")
        if selection.from_stage is not None and selection.only_stage is not None:
            raise ConfigError("--from-stage and --only-stage exclude each other; give one of them")
        if selection.only_stage is not None:
            chosen = [spec for spec in stages if spec.name == selection.only_stage]
        elif selection.from_stage is not None:
            chosen = list(stages[names.index(selection.from_stage) :])
        else:
            return self._pending(manifest)
        ready = {None, *manifest.stages}
        for spec in chosen:
            source = source_stage(spec, names)
            if source not in ready:
                raise ConfigError(f"stage {spec.name} starts from {source}, which is not finished; run {source} first")
            ready.add(spec.name)
        return {spec.name: spec for spec in chosen}

    def _pending(self, manifest: Manifest) -> dict[str, StageSpec]:
        """Stages that are not finished, or started from a hand-over that has been replaced since."""
        names = [spec.name for spec in self._curriculum.stages]
        pending: dict[str, StageSpec] = {}
        for spec in self._curriculum.stages:
            finished, source = manifest.stages.get(spec.name), source_stage(spec, names)
            origin = None if source is None else manifest.stages.get(source)
            replaced = source in pending or (
                finished is not None
                and origin is not None
                and origin.result.handoff_digest != finished.result.input_digest
            )
            if finished is None or replaced:
                pending[spec.name] = spec
        return pending

    def _run_chosen(self, manifest: Manifest, chosen: Mapping[str, StageSpec]) -> None:
        tracker = self._open_tracker()
        try:
            tags = {
                "mmrl.curriculum": self._curriculum.name,
                "mmrl.order": ",".join(s.name for s in self._curriculum.stages),
            }
            parent = tracker.open_run(self._curriculum.name, run_id=manifest.tracking_id, tags=tags)
            if manifest.running_id is not None:
                tracker.open_run(manifest.running_name or "stage", run_id=manifest.running_id).finish("KILLED")
            manifest = replace(manifest, tracking_id=parent.id, running_id=None, running_name=None)
            manifest.write(self._directory)
            with status_of(parent):
                self._on_start(parent)
                for spec in self._curriculum.stages:
                    if spec.name in chosen:
                        self._set_aside(spec, manifest)
                        manifest = self._run_stage(spec, manifest.without_stage(spec.name), tracker, parent)
                        manifest.write(self._directory)
                    self._check_gate(spec, manifest)
        finally:
            tracker.close()

    def _set_aside(self, spec: StageSpec, manifest: Manifest) -> None:
        """Renames the folder of a finished stage that runs again: nothing that was finished is deleted."""
        finished = manifest.stages.get(spec.name)
        if finished is None:
            return
        folder = (self._directory / finished.result.handoff).parent
        if folder.is_dir():
            number = next(n for n in itertools.count(1) if not folder.with_name(f"{folder.name}.replaced-{n}").exists())
            kept = folder.with_name(f"{folder.name}.replaced-{number}")
            folder.rename(kept)
            self._say(f"stage {spec.name} runs again; what it had left is kept in {kept}")
        manifest.without_stage(spec.name).write(self._directory)

    def _check_gate(self, spec: StageSpec, manifest: Manifest) -> None:
        """Ends the curriculum after a finished stage whose metrics do not meet its gate."""
        finished = manifest.stages.get(spec.name)
        if finished is None or spec.gate is None:
            return
        metrics = {key.removeprefix(f"{spec.name}/"): value for key, value in finished.result.metrics.items()}
        if not spec.gate.met(metrics):
            value = metrics.get(spec.gate.metric, math.nan)
            raise StageError(
                f"stages.{spec.name}.gate asks for {spec.gate}, found {value:.4g}; the curriculum ends here, "
                f"change the gate or train the stage again with --from-stage {spec.name}"
            )

    def _run_stage(self, spec: StageSpec, manifest: Manifest, tracker: Tracker, parent: TrackedRun) -> Manifest:
        folder = self._directory / "stages" / _folder_name(spec)
        start, input_digest = self._starting_point(spec, manifest)
        tags = {"mmrl.stage": spec.name, "mmrl.kind": spec.kind, "mmrl.input_digest": input_digest}
        shutil.rmtree(folder, ignore_errors=True)  # what an unfinished attempt left
        run = tracker.open_run(folder.name, parent_id=parent.id, tags=tags)
        seconds: dict[str, float] = {}
        with self._in_progress(manifest, run, folder.name), status_of(run):
            with _timed(seconds, "train"):
                job = self._build_stage(spec, start, folder, run)
                metrics = dict(job.train())
            if (folder / "rollouts").is_dir():
                run.log_artifact(folder / "rollouts")
            lineage = {"stage": spec.name, "started_from": spec.start_from, "input_digest": input_digest}
            facts = {**self._curriculum.facts, "lineage": lineage}
            digest = write_handoff(folder / "handoff", job.export, facts)
            run.set_tags({"mmrl.output_digest": digest})
            with _timed(seconds, "evaluate"):
                evaluated = self._evaluate(folder / "handoff", folder / "evaluation", spec.name, run)
            final = {f"{spec.name}/{key}": value for key, value in {**metrics, **evaluated}.items()}
            parent.log_metrics({f"{spec.name}/{key}": value for key, value in evaluated.items()}, step=spec.index + 1)
        result = StageResult(
            name=spec.name,
            handoff=str((folder / "handoff").relative_to(self._directory)),
            handoff_digest=digest,
            input_digest=input_digest,
            metrics=final,
            seconds=seconds,
            tracking_id=run.id,
        )
        return manifest.with_stage(spec.name, FinishedStage(digest=spec.digest, content=spec.content, result=result))

    @contextmanager
    def _in_progress(self, manifest: Manifest, run: TrackedRun, name: str) -> Iterator[None]:
        """Notes the stage's tracked run while it lasts: a process that is killed leaves the note behind."""
        replace(manifest, running_id=run.id, running_name=name).write(self._directory)
        try:
            yield
        finally:
            manifest.write(self._directory)

    def _starting_point(self, spec: StageSpec, manifest: Manifest) -> tuple[Path, str]:
        source = source_stage(spec, [stage.name for stage in self._curriculum.stages])
        if source is None:
            base = self._curriculum.base()
            return base, folder_digest(base) if base.is_dir() else str(base)
        result = manifest.stages[source].result
        handoff = self._directory / result.handoff
        digest = check_handoff(handoff)["digest"]
        if digest != result.handoff_digest:
            raise StageError(f"{handoff} is not what stage {source} left there; restore it, or set a new run_name")
        return handoff, digest

    def _refuse_changes(self, manifest: Manifest, chosen: Mapping[str, StageSpec], selection: Selection) -> None:
        kept = {
            spec.name: manifest.stages[spec.name].content
            for spec in self._curriculum.stages
            if spec.name in manifest.stages
            and spec.name not in chosen
            and manifest.stages[spec.name].digest != spec.digest
        }
        if not kept or selection.allow_changes:
            return
        changes = describe_changes(kept, self._curriculum.stages) or ["a stage that they build on"]
        names = ", ".join(f"stages.{name}" for name in kept)
        raise ConfigError(
            f"{names}: finished in {self._directory} with another configuration:\n"
            + "".join(f"    {line}\n" for line in changes)
            + "undo the change, set run_name to a new name, keep what is finished with --allow-changes, or run again "
            f"with --from-stage {next(iter(kept))}"
        )


def _folder_name(spec: StageSpec) -> str:
    return f"{spec.index:02d}-{spec.name}"


@contextmanager
def status_of(run: TrackedRun) -> Iterator[None]:
    """Ends a tracked run with the status that is true."""
    try:
        yield
    except KeyboardInterrupt:
        run.finish("KILLED")
        raise
    except BaseException:
        run.finish("FAILED")
        raise
    run.finish("FINISHED")


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[phase] = time.monotonic() - start
