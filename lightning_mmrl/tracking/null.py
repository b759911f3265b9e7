"""Tracking turned off: the same calls, and nothing happens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_mmrl.protocols.plain import RunStatus


class NullRun:
    """A run that keeps nothing."""

    def __init__(self, run_id: str) -> None:
        self._id = run_id

    @property
    def id(self) -> str:
        return self._id

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
"""Id of a parent run that no tracker knows; a later run of the curriculum may be tracked."""

UNTRACKED_STAGE = "untracked-stage"


class NullTracker:
    """Opens runs that keep nothing; a run's id is the one asked for, or says that there is none.

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
