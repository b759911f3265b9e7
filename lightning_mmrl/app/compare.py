"""Trains and evaluates the arms of a comparison, each run in a process of its own, and continues what is unfinished."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning_mmrl.app.arm_best import (
    best_weights,
    evaluation_command,
    evaluation_of_best,
    is_evaluated,
    note_evaluated,
)
from lightning_mmrl.app.arms import ArmRun
from lightning_mmrl.app.processes import Command, Ended, Pool, Steps, Task
from lightning_mmrl.app.run_folder import LOCK, locked, writable
from lightning_mmrl.app.shared_stages import Segment, begin, begun_with, folders_of, manifest_of, segment_of
from lightning_mmrl.app.trackers import open_tracker, origin
from lightning_mmrl.curriculum.attempt import Attempt, stage_folder
from lightning_mmrl.curriculum.changes import describe_changes, same_content
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.curriculum.selection import Selection, changed_stages, due_actions
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.files import write_json
from lightning_mmrl.protocols.plain import TrackedRun
from lightning_mmrl.report.arms_page import write_comparison
from lightning_mmrl.report.comparison import FILE, RUNS, VERSION, read_plan
from lightning_mmrl.settings.compare import CompareSettings
from lightning_mmrl.tracking.delivery import LOCAL_PREFIX
from lightning_mmrl.tracking.mlflow import ABOVE
from lightning_mmrl.tracking.null import UNTRACKED
from lightning_mmrl.tracking.store import STORE, settle_tracking, store_of_mlflow_run
from lightning_mmrl.training.interruption import Interruption
from lightning_mmrl.types.redaction import redact
from lightning_mmrl.types.text import duration, printable

LOGS = "logs"
A_PROCESS_S = 1.0
"""A task that took less started no process: what it would have done was there already."""
_AFTER = "budget.after"
"""Key of a stage's content with the stages before it whose costs count."""

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A planned comparison: what is asked, the runs of its arms, and the stages that they share."""

    settings: CompareSettings
    runs: Sequence[ArmRun]
    shared: Sequence[Segment]
    command: Sequence[str] = ()

    @property
    def directory(self) -> Path:
        """The folder of the comparison."""
        return self.runs[0].comparison

    @property
    def name(self) -> str:
        """The name of that folder."""
        return self.directory.name

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with."""
        return self.settings.baseline or next(iter(self.settings.arms))

    @property
    def budget(self) -> dict[str, float] | None:
        """The measure and the limit of each arm's budget; a debug run has none."""
        budget = self.runs[0].config.budget if self.settings.budget is not None else None
        return None if budget is None else {budget.measure: budget.total}


@dataclass(slots=True, kw_only=True)
class State:
    """What `compare.json` knows beside the plan.

    Attributes:
        codes: The exit code of each run by its name; None if it has not ended.
        best_codes: The exit code of the evaluation of a run's best weights, None without one.
        tracking_id: The run of the comparison in the tracker.
    """

    codes: dict[str, int | None] = field(default_factory=dict)
    best_codes: dict[str, int | None] = field(default_factory=dict)
    tracking_id: str | None = None

    @classmethod
    def read(cls, directory: Path) -> "State":
        """The state in a comparison's folder; an empty one if the comparison is new.

        Raises:
            DataError: The file is damaged or of another version.
        """
        if not (directory / FILE).is_file():
            return cls()
        plan = read_plan(directory)
        codes = {Path(run.folder).name: run.exit_code for run in plan.runs}
        best_codes = {Path(run.folder).name: run.best_exit_code for run in plan.runs}
        return cls(codes=codes, best_codes=best_codes, tracking_id=plan.tracking_id)

    def write(self, comparison: Comparison) -> None:
        """Replaces `compare.json`."""
        settings, first = comparison.settings, {run.arm: run for run in reversed(comparison.runs)}
        arms = {
            name: {
                "overrides": [redact(each) for each in arm.overrides],
                **first[name].outline,
            }
            for name, arm in settings.arms.items()
        }
        content = {
            "version": VERSION,
            "name": comparison.name,
            "question": settings.question,
            "exploratory": settings.exploratory,
            "command": ["mmrl", *(redact(argument) for argument in comparison.command)],
            "baseline": comparison.baseline,
            "all_pairs": settings.all_pairs,
            "measure": {"set": settings.measure.set, "metric": settings.measure.metric},
            "budget": comparison.budget,
            "tolerance": settings.tolerance,
            "arms": arms,
            "seeds": settings.seeds,
            "folds": list(dict.fromkeys(run.fold for run in comparison.runs)),
            "runs": [self._plain(run) for run in comparison.runs],
            "tracking_id": self.tracking_id,
        }
        write_json(comparison.directory / FILE, content)

    @property
    def failed(self) -> list[str]:
        """The runs that failed, and those whose best weights could not be evaluated."""
        return [name for name, code in self.codes.items() if code or self.best_codes.get(name)]

    def _plain(self, run: ArmRun) -> dict[str, Any]:
        best = evaluation_of_best(run)
        has_best = best_weights(run) is not None and is_evaluated(run)
        return {
            "arm": run.arm,
            "seed": run.seed,
            "fold": run.fold,
            "folder": f"{RUNS}/{run.name}",
            "exit_code": self.codes.get(run.name),
            "best_exit_code": self.best_codes.get(run.name),
            "shared": begun_with(run.directory),
            "best": str(best.relative_to(run.comparison)) if has_best else None,
        }


def is_whole(run: ArmRun) -> bool:
    """Whether nothing of a run is left to do."""
    manifest = manifest_of(run.directory)
    return manifest is not None and not due_actions(run.specs(), manifest, Selection()) and is_evaluated(run)


def refuse_changes(comparison: Comparison) -> None:
    """Refuses an arm whose runs began with another configuration, as `mmrl train` would.

    A damaged run is no reason to refuse the others; it is refused when it is started.

    Raises:
        ConfigError: Naming the arm and the changes.
    """
    for run in comparison.runs:
        try:
            changed = _changed(run)
        except StageError:
            continue
        if changed:
            lines = describe_changes(changed, run.specs())
            why = ""
            if any(_AFTER in was and was[_AFTER] != now.get(_AFTER) for was, now in _pairs(changed, run)):
                why = "; the arms share other stages at their beginning than before, and these do not count"
            raise ConfigError(
                f"arm {run.arm} began with another configuration in {run.directory} ({'; '.join(lines)}{why}); undo "
                "the change, give the arm another name, or begin a new comparison with --name"
            )


def _pairs(changed: Mapping[str, Mapping[str, Any]], run: ArmRun) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return [(changed[spec.name], spec.content) for spec in run.specs() if spec.name in changed]


def _changed(run: ArmRun) -> dict[str, Mapping[str, Any]]:
    """The stages that began with another configuration, each with what it began with.

    Raises:
        StageError: The folder of the run is damaged.
    """
    specs, manifest = run.specs(), Manifest.read(run.directory)
    changed = dict(changed_stages(specs, manifest, due_actions(specs, manifest, Selection())))
    for spec in specs:
        attempt = None if spec.name in manifest.stages else Attempt.read(stage_folder(run.directory, spec))
        if attempt is not None and not same_content(attempt.content, spec.content):
            changed[spec.name] = attempt.content
    return changed


def run_comparison(comparison: Comparison, parallel: int, say: Say) -> State:
    """Runs what is unfinished of a comparison, and writes `compare.json` after each run that ends.

    Args:
        comparison: The comparison.
        parallel: Processes at a time.
        say: Shows a line.

    Returns:
        How each run ended.

    Raises:
        ConfigError: Another process works in the folder, or a run began with another configuration.
        DataError: `compare.json` is damaged.
        Interrupted: A signal came; all processes have ended, and the same command continues.
    """
    directory = comparison.directory
    writable(directory)
    with Interruption(), locked(directory / LOCK, "give another --name"):
        state = State.read(directory)
        refuse_changes(comparison)
        names = [run.name for run in comparison.runs]
        whole = {run.name for run in comparison.runs if state.codes.get(run.name) == 0 and is_whole(run)}
        state.codes = {name: 0 if name in whole else None for name in names}
        state.best_codes = {name: code for name, code in state.best_codes.items() if name in whole}
        state.write(comparison)
        left = [run for run in comparison.runs if run.name not in whole]
        if whole:
            say(f"{len(whole)} of {len(names)} runs are finished already")
        if left:
            with _tracked(comparison, state) as parent:
                _Work(comparison, state, say).run(left, parallel, parent)
        return state


class _Work:
    """The processes of one call, and what is said of them."""

    def __init__(self, comparison: Comparison, state: State, say: Say) -> None:
        self._comparison = comparison
        self._state = state
        self._say = say
        self._codes: dict[str, int] = {}
        self._seconds: dict[bool, list[float]] = {True: [], False: []}  # of runs, and of stages that they share
        self._tasks: list[Task] = []
        self._parallel = 1

    def run(self, left: Sequence[ArmRun], parallel: int, parent: TrackedRun) -> None:
        """Runs what is left, after the stages that runs share which have not begun."""
        self._parallel = parallel
        new = [run for run in left if manifest_of(run.directory) == Manifest()]
        shared = [each for each in self._comparison.shared if any(run in each.runs for run in new)]
        for run in left:  # the first run of a seed brings the stages that runs of this seed share
            for segment in shared:
                if segment.suffix == run.suffix and segment.place not in [task.name for task in self._tasks]:
                    above = () if segment.above is None else (segment.above.place,)
                    self._add(segment.place, partial(self._share, segment), above)
            own = segment_of(run, shared)
            waits = () if own is None else (own.place,)
            self._add(run.name, partial(self._train, run, waits), waits)
        environment = _environment(parent, parallel)
        Pool(parallel, environment, on_start=self._on_start, on_end=self._on_end).run(self._tasks)

    def _add(self, name: str, begin: Callable[[], Steps], waits_for: Sequence[str]) -> None:
        self._tasks.append(Task(name=name, log=self.log(name), begin=begin, waits_for=waits_for))

    def _share(self, segment: Segment) -> Steps:
        above = segment.above
        if above is not None and not above.is_finished:
            return self._codes.get(above.place) or 1
        if segment.is_finished:
            return 0
        first, folder = segment.runs[0], segment.directory
        prepare = partial(begin, folder, first, self._folders(first))
        return (yield Command(arguments=segment.command, lock=folder / LOCK, prepare=prepare))

    def _train(self, run: ArmRun, waits: Sequence[str]) -> Steps:
        failed = [name for name in waits if self._codes[name]]
        segment = segment_of(run, self._comparison.shared)
        if failed and segment is not None and not segment.is_finished:
            self._say(f"{run.name}: {failed[0]} failed, whose stages it needs")
            return self._codes[failed[0]]
        arguments, folder = ("train", *run.command(RUNS, run.name)), run.directory
        prepare = partial(begin, folder, run, self._folders(run))
        code = yield Command(arguments=arguments, lock=folder / LOCK, prepare=prepare)
        best = best_weights(run)
        if code or best is None or is_evaluated(run):
            return code
        code = yield evaluation_command(run, best)
        self._state.best_codes[run.name] = code
        if not code:
            note_evaluated(run, best)
        return 0  # the run itself is whole

    def _folders(self, run: ArmRun) -> list[tuple[Path, ArmRun]]:
        return folders_of(run, self._comparison.shared, self._comparison.runs)

    def log(self, name: str) -> Path:
        """The file with the output of a run's processes."""
        return self._comparison.directory / LOGS / f"{name}.log"

    def _on_start(self, task: Task) -> None:
        self._say(f"{task.name}: begins")

    def _on_end(self, ended: Ended) -> None:
        name, codes = ended.task.name, self._state.codes
        self._codes[name] = ended.code
        if ended.seconds >= A_PROCESS_S:
            self._seconds[name in codes].append(ended.seconds)
        if name in codes:
            codes[name] = ended.code
            self._state.write(self._comparison)
            write_comparison(self._comparison.directory)
        how = f"finished in {duration(ended.seconds)}"
        best = self._state.best_codes.get(name)
        if ended.code:
            how = f"failed with exit code {ended.code}: {_last_line(self.log(name))}"
        elif best:
            how += (
                f", but the evaluation of its best weights failed with exit code {best}: {_last_line(self.log(name))}"
            )
        done, failed = sum(code == 0 for code in codes.values()), sum(bool(code) for code in codes.values())
        rest = [task.name in codes for task in self._tasks if task.name not in self._codes]
        ahead = seconds_left(rest, self._seconds, self._parallel)
        left = f", about {duration(ahead)} left" if ahead else ""
        counts = f"{done} of {len(codes)} runs finished" + (f", {failed} failed" if failed else "")
        self._say(f"{name}: {how} ({counts}{left})")


def seconds_left(rest: Sequence[bool], took: Mapping[bool, Sequence[float]], parallel: int) -> float | None:
    """Seconds that tasks may still take: for each, whether it is a run, by the means of both kinds so far.

    >>> seconds_left([True, True, False], {True: [60.0, 80.0], False: [20.0]}, 2), seconds_left([True], {True: []}, 2)
    (80.0, None)
    """
    if not rest or not took[True]:
        return None
    means = {kind: fmean(times) for kind, times in took.items() if times}
    return sum(means.get(kind, means[True]) for kind in rest) / min(parallel, len(rest))


def _last_line(log: Path) -> str:
    """The last line of a log, which says why a command failed."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return f"{printable(last)} (more in {log})"


def _environment(parent: TrackedRun, parallel: int) -> dict[str, str]:
    """The variables of the processes: they open their runs below the comparison's, and share the processors."""
    found = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_RUN_ID", ABOVE, STORE)}
    if (theirs := store_of_mlflow_run()) is not None:
        found[STORE] = theirs
    if parent.id != UNTRACKED and not parent.id.startswith(LOCAL_PREFIX):
        found[ABOVE] = parent.id
    if parallel > 1:
        found.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // parallel)))
    return found


@contextmanager
def _tracked(comparison: Comparison, state: State) -> Iterator[TrackedRun]:
    """Opens the run of the comparison in the tracker, or continues it, and closes it with its true status."""
    config = settle_tracking(comparison.runs[0].config)
    quiet = replace(config, tracking=replace(config.tracking, system_every_s=None))
    tracker = open_tracker(quiet, origin(comparison.command))
    try:
        parent = tracker.open_run(comparison.name, run_id=state.tracking_id, tags={"mmrl.comparison": comparison.name})
        state.tracking_id = parent.id
        state.write(comparison)
        try:
            parent.log_params(parameters(comparison))
            yield parent
        except BaseException as error:
            parent.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        parent.finish("FAILED" if state.failed else "FINISHED")
    finally:
        tracker.close()


def parameters(comparison: Comparison) -> dict[str, Any]:
    """The parameters of the comparison's run in the tracker."""
    settings = comparison.settings
    arms = {f"arms.{name}": " ".join(arm.overrides) for name, arm in settings.arms.items()}
    return {
        "seeds": ",".join(map(str, settings.seeds)),
        "baseline": comparison.baseline,
        "measure.set": settings.measure.set,
        **{f"budget.{name}": limit for name, limit in (comparison.budget or {}).items()},
        **arms,
    }
