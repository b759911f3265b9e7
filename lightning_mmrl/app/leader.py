"""Rank 0 runs the orchestrator and broadcasts commands to all ranks: run a stage, export, evaluate."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from lightning_mmrl.protocols.plain import Evaluator, StageFactory, StageJob, TrackedRun
from lightning_mmrl.tracking.null import NullRun
from lightning_mmrl.training.group import RankGroup
from lightning_mmrl.types.records import StageSpec, Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A command of rank 0 to all ranks.

    Attributes:
        kind: "run" builds and runs a stage, "export" writes an artifact of the stage that ran last, "evaluate"
            evaluates a checkpoint, "end" is the last command.
        stage: Name of the stage.
        inputs: The folders that the stage reads, by input.
        source: The checkpoint to evaluate.
        artifact: The artifact to export.
        directory: Folder of the results.
    """

    kind: Literal["run", "export", "evaluate", "end"]
    stage: str = ""
    inputs: Mapping[str, Path] = field(default_factory=dict)
    source: Path = Path()
    artifact: str = ""
    directory: Path = Path()


class Leader:
    """The stage factory and the evaluator of rank 0; each call has every other rank do the same work.

        with Leader(group, build, evaluate) as leader:
            StageOrchestrator(..., build_stage=leader.build_stage, evaluate=leader.evaluate, ...).run()

    While a command is carried out, all ranks agree on interruptions; between commands rank 0 decides alone. At the end
    the other ranks are told to end. After a failed command they no longer listen, and end because this process ends.
    """

    def __init__(self, group: RankGroup, build: StageFactory, evaluate: Evaluator) -> None:
        self._group = group
        self._build = build
        self._evaluate = evaluate
        self._listening = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._listening:
            self._group.broadcast(Order(kind="end"))

    def build_stage(self, spec: StageSpec, inputs: Mapping[str, Path], directory: Path, run: TrackedRun) -> StageJob:
        """Returns the job of a stage, which all ranks build, run and export."""
        return _LedJob(leader=self, spec=spec, inputs=inputs, directory=directory, tracked=run)

    def evaluate(self, checkpoint: Path, directory: Path, stage: str, run: TrackedRun | None) -> Mapping[str, float]:
        """Evaluates a checkpoint on all ranks."""
        with self.ordered(Order(kind="evaluate", stage=stage, source=checkpoint, directory=directory)):
            return self._evaluate(checkpoint, directory, stage, run)

    @contextmanager
    def ordered(self, order: Order) -> Iterator[StageFactory]:
        """Makes the other ranks do the same work as the `with` block.

        Raises:
            Interrupted: Any rank was sent a signal.
        """
        with self._group.interruption.together(self._group.ranks):
            self._group.broadcast(order)
            self._listening = False
            yield self._build
            self._group.interruption.safe_point()
            self._listening = True


@dataclass(kw_only=True)
class _LedJob:
    """The job of a stage on rank 0; the stage is built only when the job runs."""

    leader: Leader
    spec: StageSpec
    inputs: Mapping[str, Path]
    directory: Path
    tracked: TrackedRun
    job: StageJob | None = None

    def run(self) -> Training:
        """Builds and runs the stage on all ranks."""
        order = Order(kind="run", stage=self.spec.name, inputs=dict(self.inputs), directory=self.directory)
        with self.leader.ordered(order) as build:
            self.job = build(self.spec, self.inputs, self.directory, self.tracked)
            return self.job.run()

    def export(self, artifact: str, directory: Path) -> Mapping[str, Any]:
        """Writes an artifact, whose weights may be spread over all ranks."""
        assert self.job is not None, "it did not run"
        with self.leader.ordered(Order(kind="export", stage=self.spec.name, artifact=artifact, directory=directory)):
            return self.job.export(artifact, directory)


class Follower:
    """Carries out the commands of rank 0 on any other rank, until the last command."""

    def __init__(self, group: RankGroup, specs: Sequence[StageSpec], build: StageFactory, evaluate: Evaluator) -> None:
        self._group = group
        self._specs = {spec.name: spec for spec in specs}
        self._build = build
        self._evaluate = evaluate
        self._job: StageJob | None = None

    def run(self) -> None:
        """Listens to rank 0.

        Raises:
            Interrupted: Any rank was sent a signal.
        """
        interruption = self._group.interruption
        with interruption.together(self._group.ranks):
            nothing = Order(kind="end")  # ignored: every rank receives the command of rank 0
            while (order := self._group.broadcast(nothing)).kind != "end":
                if order.kind != "export":
                    self._job = None  # before anything else takes memory
                if order.kind == "run":
                    spec, run = self._specs[order.stage], NullRun(order.stage)
                    self._job = self._build(spec, order.inputs, order.directory, run)
                    self._job.run()
                elif order.kind == "export":
                    assert self._job is not None, "an order to export comes after one to run a stage"
                    self._job.export(order.artifact, order.directory)
                else:
                    self._evaluate(order.source, order.directory, order.stage, None)
                interruption.safe_point()
