"""Runs stages in order: each reads artifacts on disk, is tracked, evaluated if it trains, and recorded as finished."""

import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning_mmrl.curriculum.artifacts import check_artifact, sealed, write_artifact
from lightning_mmrl.curriculum.attempt import STATES, Attempt, artifact_folder, refuse_changed_attempts, stage_folder
from lightning_mmrl.curriculum.callbacks import Callbacks
from lightning_mmrl.curriculum.changes import same_content
from lightning_mmrl.curriculum.costs import note_costs
from lightning_mmrl.curriculum.emptiness import empty_inputs, in_words, is_idle, refuse_idle
from lightning_mmrl.curriculum.graph import with_ancestors
from lightning_mmrl.curriculum.handoff import check_handoff
from lightning_mmrl.curriculum.inputs import Input, base_input, origin_of
from lightning_mmrl.curriculum.kept_models import log_models
from lightning_mmrl.curriculum.lineage import check_finished, check_record, tags_of
from lightning_mmrl.curriculum.manifest import EvaluatedBase, FinishedStage, Manifest
from lightning_mmrl.curriculum.selection import (
    Action,
    Selection,
    due_actions,
    is_stale,
    refuse_changes,
    refuse_lost,
)
from lightning_mmrl.errors import DiskError, GateError
from lightning_mmrl.protocols.plain import Evaluator, StageFactory, StageJob, TrackedRun, Tracker
from lightning_mmrl.settings.stage import BASE, StageSettings
from lightning_mmrl.tracking.status import status_of
from lightning_mmrl.types.records import HANDOFF, WEIGHTS, Artifact, StageResult, StageSpec, Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Curriculum:
    """Stages in order, and a function that gives the checkpoint of a stage that starts from no other stage.

    `base_evaluation` is the hash of the settings with which the base model is evaluated; empty if it is not evaluated.
    """

    name: str
    stages: Sequence[StageSpec]
    base: Callable[[StageSpec], Path]
    base_evaluation: str = ""


class StageOrchestrator:
    """Runs a curriculum in a run directory; a second call skips stages that are finished and unchanged.

    Args:
        curriculum: The stages.
        directory: The run directory; its `manifest.json` records the finished stages.
        build_stage: Builds the job of a stage.
        evaluate: Evaluates a handoff.
        tracker: Opens the tracker of the run.
        callbacks: Called as the run goes on.
        say: Shows the user a line.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        directory: Path,
        *,
        build_stage: StageFactory,
        evaluate: Evaluator,
        tracker: Callable[[], Tracker],
        callbacks: Callbacks,
        say: Callable[[str], None] = print,
    ) -> None:
        self._curriculum = curriculum
        self._directory = directory
        self._build_stage = build_stage
        self._evaluate = evaluate
        self._open_tracker = tracker
        self._callbacks = callbacks
        self._say = say
        self._stages = curriculum.stages
        self._manifest = Manifest()
        self._selection = Selection()
        self._waiting: set[str] = set()

    def run(self, selection: Selection | None = None) -> list[StageResult]:
        """Runs the unfinished or the selected stages, and returns the results of all finished stages in order.

        Raises:
            ConfigError: A finished stage was configured differently, or the selection cannot run.
            StageError: An artifact is missing or changed.
            GateError: The metrics of a stage do not meet its gate.
        """
        self._selection = selection = selection or Selection()
        self._manifest = Manifest.read(self._directory)
        due = due_actions(self._stages, self._manifest, selection)
        self._waiting = again = {name for name, action in due.items() if action == "run"}
        check_finished(self._directory, [s for name, s in self._manifest.stages.items() if name not in again])
        if not selection.allow_changes:
            refuse_changes(self._stages, self._manifest, due, self._directory)
            named = (selection.only_stage, selection.from_stage)
            unfinished = [spec for spec in self._stages if spec.name in due and spec.name not in named]
            folders = {spec.name: stage_folder(self._directory, spec) for spec in unfinished}
            refuse_changed_attempts(folders, self._stages)
        refuse_lost(self._stages, self._manifest, due, self._directory)
        read = {edge.stage for spec in self._stages if spec.name in again for edge in spec.inputs.values()}
        for spec in self._stages:
            if spec.name in self._manifest.stages and spec.name not in due:
                self._say(f"{self._title(spec)}: already finished")
                # The stage's saved states are still there if a process was killed right after it saved the manifest.
                shutil.rmtree(stage_folder(self._directory, spec) / STATES, ignore_errors=True)
                if spec.name in read:
                    self._show_data(spec)
        gated = {spec.name for spec in self._stages} if selection.everything else with_ancestors(due, self._stages)
        # A run that began with stages of another run may have nothing left to do, but nothing describes it yet.
        is_new = self._manifest.tracking_id is None
        if due or is_new or self._manifest.running_id is not None or self._base_to_evaluate() is not None:
            self._run_due(due, gated)
            for spec in self._stages:
                if is_stale(spec, self._manifest):
                    self._say(f"{self._title(spec)}: an artifact that it read was replaced; the next run runs it again")
        else:
            for spec in self._stages:
                self._check_gate(spec)
        return self.finished()

    def finished(self) -> list[StageResult]:
        """The results of the finished stages, in order, read from the run directory."""
        stages = Manifest.read(self._directory).stages
        return [stages[spec.name].result for spec in self._stages if spec.name in stages]

    def _run_due(self, due: Mapping[str, Action], gated: set[str]) -> None:
        tracker = self._open_tracker()
        try:
            tags = {"mmrl.curriculum": self._curriculum.name, "mmrl.order": ",".join(s.name for s in self._stages)}
            parent = tracker.open_run(self._curriculum.name, run_id=self._manifest.tracking_id, tags=tags)
            if self._manifest.running_id not in (None, parent.id):
                name = self._manifest.running_name or "stage"
                tracker.open_run(name, run_id=self._manifest.running_id).finish(self._manifest.status_left)
            self._save(tracking_id=parent.id, running_id=None, running_name=None)
            with self._in_progress(parent, self._curriculum.name), status_of(parent):
                self._callbacks.on_start(parent)
                made = [each for name, each in self._manifest.stages.items() if name not in self._waiting]
                log_models(made, self._directory, parent)  # again, if a process was killed before it had sent them
                self._evaluate_base(parent)
                for spec in self._stages:
                    if due.get(spec.name) == "run":
                        self._run_stage(spec, tracker, parent)
                    elif due.get(spec.name) == "evaluate":
                        self._evaluate_again(spec, tracker, parent)
                    if spec.name in gated:
                        self._check_gate(spec)
                self._callbacks.on_end(parent)
        finally:
            tracker.close()

    def _evaluate_base(self, parent: TrackedRun) -> None:
        """Evaluates the base model once, if a stage starts from it."""
        base, how = self._base_to_evaluate(), self._curriculum.base_evaluation
        if base is None:
            return
        folder = self._directory / BASE / "evaluation"
        metrics = self._evaluate(base.path, folder, BASE, parent)
        parent.log_metrics({f"{BASE}/{key}": value for key, value in metrics.items()}, step=0)
        place = str(folder.relative_to(self._directory))
        self._save(base=EvaluatedBase(digest=base.digest, evaluation=how, path=place, metrics=metrics))
        self._callbacks.on_evaluated(parent)

    def _base_to_evaluate(self) -> Input | None:
        """Returns the base model if it is to be evaluated, otherwise None.

        A stage must start from it, and the manifest have no evaluation of the same files with the present settings.
        """
        plain = (spec for spec in self._stages if spec.trains and spec.source is None and not spec.settings.checkpoint)
        first, known = next(plain, None), self._manifest.base
        if first is None or not self._curriculum.base_evaluation:
            return None
        base = base_input(self._curriculum.base(first))
        same = known is not None and (known.digest, known.evaluation) == (base.digest, self._curriculum.base_evaluation)
        return None if same else base

    def _run_stage(self, spec: StageSpec, tracker: Tracker, parent: TrackedRun) -> None:
        inputs, empty = self._inputs(spec), self._empty_inputs(spec)
        for line in in_words(spec, empty):
            self._say(f"{self._title(spec)}: {line}")
        digests = {key: each.digest for key, each in inputs.items()}
        self._set_aside(spec)
        folder = stage_folder(self._directory, spec)
        tags = {"mmrl.stage": spec.name, "mmrl.kind": spec.settings.kind, "mmrl.config_digest": spec.digest}
        tags |= {_tag("input", key): digest for key, digest in digests.items()}
        tags |= {f"mmrl.empty.{key}": reason for key, reason in empty.items()}
        tags |= {"mmrl.idle": "true"} if is_idle(spec, empty) else {}
        run_id = self._continued(spec, folder, digests)
        run = tracker.open_run(folder.name, parent_id=parent.id, run_id=run_id, tags=tags)
        Attempt(content=spec.content, inputs=digests, tracking_id=run.id).write(folder)
        seconds: dict[str, float] = {}
        with self._in_progress(run, folder.name), status_of(run):
            training, artifacts = self._made(spec, inputs, folder, run, seconds)
            metrics = {f"{spec.name}/{key}": value for key, value in training.metrics.items()}
            for name, made in artifacts.items():
                run.set_tags({_tag("output", name): made.digest, **tags_of(self._directory / made.path, name)})
            if HANDOFF in artifacts:
                run.set_tags({"mmrl.output_seal": str(artifacts[HANDOFF].seal)})
            result = StageResult(
                name=spec.name,
                artifacts=artifacts,
                inputs=digests,
                metrics=metrics,
                seconds=seconds,
                tracking_id=run.id,
                num_steps=training.num_steps,
                num_skipped=training.num_skipped,
                changed=training.changed,
                empty_inputs=empty,
                idle=is_idle(spec, empty),
                costs=training.costs,
            )
            note_costs(spec.name, training.costs, folder, run, training.num_steps)
            finished = FinishedStage(digest=spec.digest, content=spec.content, result=result, training_metrics=metrics)
            # Saved before the evaluation, so that the stage is not lost if the evaluation fails.
            self._save(stages={**self._manifest.stages, spec.name: finished})
            self._waiting = self._waiting - {spec.name}
            log_models([finished], self._directory, parent)
            shutil.rmtree(folder / STATES, ignore_errors=True)  # the artifacts replace them
            if spec.trains:
                self._evaluate_stage(spec, run, parent)
        self._show_data(spec)

    def _made(
        self, spec: StageSpec, inputs: Mapping[str, Input], folder: Path, run: TrackedRun, seconds: dict[str, float]
    ) -> tuple[Training, dict[str, Artifact]]:
        """Runs a stage and seals its artifacts; nothing here keeps the job, whose weights would take memory."""
        with _timed(seconds, "train" if spec.trains else "run"):
            job = self._build_stage(spec, {key: each.path for key, each in inputs.items()}, folder, run)
            training = job.run()
        if (folder / "rollouts").is_dir():
            run.log_artifact(folder / "rollouts")
        return training, self._sealed_artifacts(spec, job, training, inputs)

    def _sealed_artifacts(
        self, spec: StageSpec, job: StageJob, training: Training, inputs: Mapping[str, Input]
    ) -> dict[str, Artifact]:
        """Has the job write its artifacts, and seals them."""
        lineage: dict[str, Any] = {
            "stage": spec.name,
            "steps": training.num_steps,
            "skipped_steps": training.num_skipped,
            "changed_weights": training.changed,
            **origin_of(spec, inputs),
        }
        lineage |= {f"empty.{key}": reason for key, reason in self._empty_inputs(spec).items()}
        made = {}
        for name in spec.outputs:
            folder = artifact_folder(stage_folder(self._directory, spec), name)
            digest = write_artifact(folder, partial(job.export, name), {"lineage": lineage})
            path = folder.relative_to(self._directory)
            made[name] = Artifact(path=str(path), digest=digest, seal=sealed(folder)["seal"])
        return made

    def _show_data(self, spec: StageSpec) -> None:
        """Passes the data that a finished stage made to `on_made`, which checks them for the stages that read them."""
        artifacts = self._manifest.stages[spec.name].result.artifacts
        data = {name: self._directory / made.path for name, made in artifacts.items() if name != HANDOFF}
        if data:
            self._callbacks.on_made(spec, data)
        for reader in self._stages:
            if reader.name in self._waiting and any(edge.stage == spec.name for edge in reader.inputs.values()):
                self._empty_inputs(reader)  # raises now, and not only when its turn comes

    def _empty_inputs(self, spec: StageSpec) -> dict[str, str]:
        """The inputs of a stage that hold no sample, as far as they are made, and why; raises as `refuse_idle`."""
        made = {name: stage for name, stage in self._manifest.stages.items() if name not in self._waiting}
        empty = empty_inputs(spec, self._directory, made)
        refuse_idle(spec, empty)
        return empty

    def _continued(self, spec: StageSpec, folder: Path, inputs: Mapping[str, str]) -> str | None:
        """Returns the tracked run of the attempt that the stage resumes; if there is none to resume, clears the folder.

        An attempt that was killed before its first state is resumed as well, so that its tracked run continues. An
        attempt that cannot be resumed is moved aside if it has a state.
        """
        attempt = Attempt.begun(folder)
        if attempt is not None:
            # Training may continue with changed settings. A stage that makes data may not, because half of its data
            # would have the old settings and half the new ones.
            accepted = self._selection.allow_changes and spec.trains
            if dict(attempt.inputs) == dict(inputs) and (accepted or same_content(attempt.content, spec.content)):
                return attempt.tracking_id
            if Attempt.read(folder) is not None:
                self._keep_aside(spec, folder)
        shutil.rmtree(folder, ignore_errors=True)
        return None

    def _evaluate_again(self, spec: StageSpec, tracker: Tracker, parent: TrackedRun) -> None:
        result = self._manifest.stages[spec.name].result
        self._say(f"{self._title(spec)}: trained already, evaluating its handoff")
        record = result.artifacts[HANDOFF]
        handoff = self._directory / record.path
        check_record(spec.name, record, check_handoff(handoff), handoff)
        name = stage_folder(self._directory, spec).name
        run = tracker.open_run(name, parent_id=parent.id, run_id=result.tracking_id)
        with self._in_progress(run, name), status_of(run):
            self._evaluate_stage(spec, run, parent)

    def _evaluate_stage(self, spec: StageSpec, run: TrackedRun, parent: TrackedRun) -> None:
        finished = self._manifest.stages[spec.name]
        handoff = self._directory / finished.result.artifacts[HANDOFF].path
        seconds = dict(finished.result.seconds)
        with _timed(seconds, "evaluate"):
            evaluated = self._evaluate(handoff, handoff.with_name("evaluation"), spec.name, run)
        values = {f"{spec.name}/{key}": value for key, value in evaluated.items()}
        parent.log_metrics(values, step=1 + sum(each.trains for each in self._stages[: spec.index]))
        result = replace(finished.result, metrics={**finished.training_metrics, **values}, seconds=seconds)
        complete = replace(finished, result=result, evaluation=spec.evaluation)
        self._save(stages={**self._manifest.stages, spec.name: complete})
        self._callbacks.on_evaluated(parent)

    def _set_aside(self, spec: StageSpec) -> None:
        """Renames the folder of a finished stage that runs again, because no finished work is deleted."""
        finished = self._manifest.stages.get(spec.name)
        if finished is None:
            return
        folder = stage_folder(self._directory, spec)
        if folder.is_dir():
            self._keep_aside(spec, folder)
        self._save(stages={name: entry for name, entry in self._manifest.stages.items() if name != spec.name})

    def _keep_aside(self, spec: StageSpec, folder: Path) -> None:
        number = next(n for n in itertools.count(1) if not folder.with_name(f"{folder.name}.replaced-{n}").exists())
        kept = folder.with_name(f"{folder.name}.replaced-{number}")
        folder.rename(kept)
        self._say(f"stage {spec.name} runs again; what it had left is kept in {kept}")

    def _check_gate(self, spec: StageSpec) -> None:
        """Ends the curriculum after a finished stage whose metrics do not meet its gate."""
        finished = self._manifest.stages.get(spec.name)
        gate = spec.settings.gate if isinstance(spec.settings, StageSettings) else None
        if finished is None or gate is None:
            return
        metrics = {key.removeprefix(f"{spec.name}/"): value for key, value in finished.result.metrics.items()}
        if not gate.met(metrics):
            value = metrics.get(gate.metric, math.nan)
            raise GateError(
                f"stages.{spec.name}.gate asks for {gate}, found {value:.4g}; the curriculum ends here, "
                f"change the gate or train the stage again with --from-stage {spec.name}"
            )

    @contextmanager
    def _in_progress(self, run: TrackedRun, name: str) -> Iterator[None]:
        """Records a tracked run while it is in progress; a killed process leaves the record on disk."""
        outer = {"running_id": self._manifest.running_id, "running_name": self._manifest.running_name}
        self._save(running_id=run.id, running_name=name)
        try:
            yield
        except BaseException:
            with suppress(DiskError):  # a second error must not hide the first; the next start handles the record
                self._save(**outer)
            raise
        self._save(**outer)

    def _save(self, **changes: Any) -> None:
        """Changes the manifest, in memory and on disk."""
        self._manifest = replace(self._manifest, **changes)
        self._manifest.write(self._directory)

    def _inputs(self, spec: StageSpec) -> dict[str, Input]:
        """Checks the folders that a stage reads, and returns them by input."""
        inputs = {}
        if spec.reads_weights and spec.source is None:
            inputs[WEIGHTS] = base_input(self._curriculum.base(spec))
        for key, edge in spec.inputs.items():
            record = self._manifest.stages[edge.stage].result.artifacts[edge.artifact]
            folder = self._directory / record.path
            facts = check_handoff(folder) if edge.artifact == HANDOFF else check_artifact(folder)
            check_record(edge.stage, record, facts, folder)
            inputs[key] = Input(path=folder, digest=facts["digest"], seal=facts["seal"])
        return inputs

    def _title(self, spec: StageSpec) -> str:
        return f"stage {spec.index + 1} of {len(self._stages)} {spec.name}"


def _tag(what: str, name: str) -> str:
    """Returns the name of the tag with the digest of an input or output; the name for weights is shorter."""
    return f"mmrl.{what}_digest" if name in (WEIGHTS, HANDOFF) else f"mmrl.{what}.{name}"


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[phase] = time.monotonic() - start
