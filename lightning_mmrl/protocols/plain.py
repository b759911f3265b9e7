"""Protocols that need no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import NodeSettings
from lightning_mmrl.types.records import ArtifactType, Completion, Edge, Sample, StageSpec, Training

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


@runtime_checkable
class RewardFn(Protocol):
    """Scores one completion of one sample; `None` means that the reward does not apply to this sample."""

    def __call__(self, sample: Sample, completion: Completion) -> float | None: ...


@runtime_checkable
class GoldReader(Protocol):
    """A reward that reads the sample's solution, and can say before training whether it is able to."""

    def check_gold(self, sample: Sample) -> object:
        """Returns how the solution is read.

        Raises:
            MmrlError: The solution cannot be read.
        """
        ...


class TrackedRun(Protocol):
    """One open run of a tracker. Calls never raise into training once the run is open."""

    @property
    def id(self) -> str: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int, time_s: float | None = None) -> None:
        """Logs values at a step; `time_s` is in seconds since 1970, and None means the present time."""
        ...

    def log_params(self, params: Mapping[str, Any]) -> None: ...

    def set_tags(self, tags: Mapping[str, str]) -> None: ...

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Uploads a file, or a folder with all its content, into `folder` of the run."""
        ...

    def log_dataset(self, name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> None: ...

    def finish(self, status: RunStatus) -> None: ...


@runtime_checkable
class DescribedRun(TrackedRun, Protocol):
    """An open run of a tracker that also has a place for a description, tables and models, as MLflow has."""

    def describe(self, text: str) -> None:
        """Sets the description, in Markdown, unless the run has one."""
        ...

    def log_table(self, path: Path, folder: str) -> None:
        """Uploads a file `{"columns": [...], "data": [[...], ...]}` into `folder`, to be shown as a table."""
        ...

    def log_model(self, run_id: str, stage: str, handoff: Path, digest: str) -> None:
        """Logs a handoff as a model of the run `run_id`, without its weights; a second call changes nothing."""
        ...


@runtime_checkable
class Tracker(Protocol):
    """Opens runs: one parent for a curriculum and a child for each stage; `run_id` continues an earlier run.

    Only rank 0 builds a tracker, with the keys of `tracking.tracker` and a `folder` for the tracker's own files. An
    earlier run may belong to another tracker: for a `run_id` that cannot be its own, a tracker opens a new run; for one
    that its server has lost, it may raise ConfigError.
    """

    def open_run(
        self,
        name: str,
        *,
        parent_id: str | None = None,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> TrackedRun: ...

    def close(self) -> None:
        """Delivers queued entries and releases the connection."""
        ...


class StageJob(Protocol):
    """A built stage, ready to run."""

    def run(self) -> Training:
        """Runs to the end, from where an earlier call was interrupted, and returns the outcome."""
        ...

    def export(self, artifact: str, directory: Path) -> Mapping[str, Any]:
        """Writes an artifact into an empty folder, and returns the facts that its seal states about it."""
        ...


class StageFactory(Protocol):
    """Builds a stage from its specification; it reads the folders of its inputs and writes below `directory`."""

    def __call__(self, spec: StageSpec, inputs: Mapping[str, Path], directory: Path, run: TrackedRun) -> StageJob: ...


@runtime_checkable
class StageKind(Protocol):
    """Defines what a kind of stage reads, makes and refuses, and builds its stages; a kind's module has it as `KIND`.

    All but `preflight` and `build` must do without torch, because `mmrl plan` calls them.
    """

    @property
    def settings(self) -> type[NodeSettings]:
        """The keys of a stage of this kind."""
        ...

    @property
    def supervised(self) -> bool:
        """Whether each sample must end with the target that the stage learns."""
        ...

    def inputs(self, stage: Any) -> Mapping[str, Edge]:
        """Maps each input of a stage to the artifact that it reads; weights may come from `base` or `previous`."""
        ...

    def outputs(self, stage: Any) -> Mapping[str, ArtifactType]:
        """The artifacts that a stage makes, by name."""
        ...

    def describe(self, stage: Any) -> str:
        """The work of one step in words, such as `32 targets`."""
        ...

    def check(self, path: str, stage: Any, config: RunSettings) -> None:
        """Refuses values that cannot work, with a ConfigError; `path` is the key of the stage."""
        ...

    def preflight(self, path: str, stage: Any) -> None:
        """Builds cheap parts, so that they refuse bad values before anything is loaded or written."""
        ...

    def build(
        self, spec: StageSpec, inputs: Mapping[str, Path], directory: Path, run: TrackedRun, parts: Any
    ) -> StageJob:
        """Builds the stage's job; `parts` is the `app.assembly.Assembly` of the run."""
        ...


class Evaluator(Protocol):
    """Evaluates a handoff and writes predictions and figures below `directory`."""

    def __call__(
        self, checkpoint: Path, directory: Path, stage: str, run: TrackedRun | None
    ) -> Mapping[str, float]: ...
