"""Tracking turned off: the calls of a tracker, without any effect."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.protocols.plain import RunStatus


@dataclass(eq=False)
class NullRun:
    """A run that keeps nothing."""

    id: str

    def log_metrics(self, metrics: Mapping[str, float], step: int, time_s: float | None = None) -> None:
        pass

    def log_params(self, params: Mapping[str, Any]) -> None:
        pass

    def set_tags(self, tags: Mapping[str, str]) -> None:
        pass

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        pass

    def log_dataset(self, name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> None:
        pass

    def finish(self, status: RunStatus) -> None:
        pass


UNTRACKED = "untracked"
"""Id of a parent run without tracking; a later call of the same curriculum may be tracked."""

UNTRACKED_STAGE = "untracked-stage"


class NullTracker:
    """Opens runs that keep nothing; a run has the id that was asked for, or an id that says that the run is untracked.

    >>> NullTracker().open_run("quickstart").id
    'untracked'
    """

    def open_run(
        self,
        name: str,
        *,
        parent_id: str | None = None,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> NullRun:
        return NullRun(run_id or (UNTRACKED if parent_id is None else UNTRACKED_STAGE))

    def close(self) -> None:
        pass
