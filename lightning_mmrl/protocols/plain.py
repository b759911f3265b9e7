"""Protocols that need no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from lightning_mmrl.types.records import Completion, Sample, StageSpec, Training

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


@runtime_checkable
class RewardFn(Protocol):
    """Scores one completion of one sample; `None` means that the reward does not apply to this sample."""

    def __call__(self, sample: Sample, completion: Completion) -> float | None: ...


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
        """Uploads a file, or a folder with all below it, under `folder`."""
        ...

    def log_dataset(self, name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> None: ...

    def finish(self, status: RunStatus) -> None: ...


@runtime_checkable
class Tracker(Protocol):
    """Opens runs: one parent for a curriculum and a child for each stage; `run_id` continues an earlier run.

    Rank 0 alone builds one, with the keys of `tracking.tracker` and a `folder` for files of its own. An earlier run may
    have been of another tracker: a `run_id` that this one does not know opens a new run.
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

    def train(self) -> Training:
        """Trains to the end and returns the outcome."""
        ...

    def export(self, directory: Path) -> None:
        """Writes the complete Hugging Face folder that the next stage starts from."""
        ...


class StageFactory(Protocol):
    """Builds a stage from its specification; it loads weights from `start_from` and writes below `directory`."""

    def __call__(self, spec: StageSpec, start_from: Path, directory: Path, run: TrackedRun) -> StageJob: ...


class Evaluator(Protocol):
    """Evaluates a handoff and writes predictions and figures below `directory`."""

    def __call__(
        self, checkpoint: Path, directory: Path, stage: str, run: TrackedRun | None
    ) -> Mapping[str, float]: ...
