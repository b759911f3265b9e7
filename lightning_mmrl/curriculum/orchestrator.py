"""Chains stages: each starts from a hand-over on disk, is tracked, evaluated, and written down as finished."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_mmrl.curriculum.handoff import check_handoff, folder_digest, write_handoff
from lightning_mmrl.curriculum.manifest import FinishedStage, Manifest
from lightning_mmrl.curriculum.spec import source_stage
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.protocols.plain import Evaluator, StageFactory, TrackedRun, Tracker
from lightning_mmrl.types.records import StageResult, StageSpec


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

    def run(self) -> list[StageResult]:
        """Runs what is not finished yet and returns the results of all stages, in order.

        Raises:
            ConfigError: A finished stage was configured differently.
            StageError: A hand-over is missing or changed.
        """
        manifest = Manifest.read(self._directory)
        self._refuse_changes(manifest)
        pending = [spec for spec in self._curriculum.stages if spec.name not in manifest.stages]
        for spec in self._curriculum.stages:
            if spec not in pending:
                self._say(f"stage {spec.index + 1} of {len(self._curriculum.stages)} {spec.name}: already finished")
        if pending:
            self._run_pending(manifest, pending)
            manifest = Manifest.read(self._directory)
        return [manifest.stages[spec.name].result for spec in self._curriculum.stages]

    def _run_pending(self, manifest: Manifest, pending: Sequence[StageSpec]) -> None:
        tracker = self._open_tracker()
        try:
            tags = {
                "mmrl.curriculum": self._curriculum.name,
                "mmrl.order": ",".join(s.name for s in self._curriculum.stages),
            }
            parent = tracker.open_run(self._curriculum.name, run_id=manifest.tracking_id, tags=tags)
            if manifest.running_id is not None:
                # The stage that was in progress is the first that is not finished.
                tracker.open_run(_folder_name(pending[0]), run_id=manifest.running_id).finish("KILLED")
            manifest = replace(manifest, tracking_id=parent.id, running_id=None)
            manifest.write(self._directory)
            with _status_of(parent):
                self._on_start(parent)
                for spec in pending:
                    manifest = self._run_stage(spec, manifest, tracker, parent)
                    manifest.write(self._directory)
        finally:
            tracker.close()

    def _run_stage(self, spec: StageSpec, manifest: Manifest, tracker: Tracker, parent: TrackedRun) -> Manifest:
        folder = self._directory / "stages" / _folder_name(spec)
        start, input_digest = self._starting_point(spec, manifest)
        tags = {"mmrl.stage": spec.name, "mmrl.kind": spec.kind, "mmrl.input_digest": input_digest}
        shutil.rmtree(folder, ignore_errors=True)  # what an unfinished attempt left
        run = tracker.open_run(folder.name, parent_id=parent.id, tags=tags)
        seconds: dict[str, float] = {}
        with self._in_progress(manifest, run), _status_of(run):
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
        return manifest.with_stage(spec.name, FinishedStage(digest=spec.digest, result=result))

    @contextmanager
    def _in_progress(self, manifest: Manifest, run: TrackedRun) -> Iterator[None]:
        """Notes the stage's tracked run while it lasts: a process that is killed leaves the note behind."""
        replace(manifest, running_id=run.id).write(self._directory)
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

    def _refuse_changes(self, manifest: Manifest) -> None:
        for spec in self._curriculum.stages:
            finished = manifest.stages.get(spec.name)
            if finished is not None and finished.digest != spec.digest:
                raise ConfigError(
                    f"stages.{spec.name} is finished in {self._directory} with another configuration; "
                    "set run_name to a new name, or undo the change"
                )


def _folder_name(spec: StageSpec) -> str:
    return f"{spec.index:02d}-{spec.name}"


@contextmanager
def _status_of(run: TrackedRun) -> Iterator[None]:
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
