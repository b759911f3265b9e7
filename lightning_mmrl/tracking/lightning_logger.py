"""Passes Lightning's metrics on to a tracked run, and keeps a local copy."""

import math
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_mmrl.protocols.plain import TrackedRun
from lightning_mmrl.tracking.jsonl import append_lines


class RunLogger(Logger):
    """Lightning's logger over a `TrackedRun`; only rank 0 logs.

    Each call is also one line of `<directory>/metrics.jsonl`, `{"step": 3, "time": 1790000000.0, "metrics": {...}}`,
    with `time` in seconds since 1970 and a value that is not finite as the string "nan", "inf" or "-inf". A step that
    is run again after a resume has two lines; the later one holds. The key "epoch", which Lightning adds, is dropped.

    Args:
        run: Where metrics go; the run is finished by whoever opened it.
        directory: Folder of the local copy.
    """

    def __init__(self, run: TrackedRun, directory: Path) -> None:
        super().__init__()
        self._run = run
        self._directory = directory

    @property
    def name(self) -> str:
        return self._directory.name

    @property
    def version(self) -> str:
        return self._run.id

    @property
    def save_dir(self) -> str:
        return str(self._directory)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {key: float(value) for key, value in metrics.items() if key != "epoch"}
        if not values:
            return
        record = {
            "step": step or 0,
            "time": time.time(),
            "metrics": {key: _encode(value) for key, value in values.items()},
        }
        self._directory.mkdir(parents=True, exist_ok=True)
        append_lines(self._directory / "metrics.jsonl", [record])
        self._run.log_metrics(values, step or 0)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the orchestrator logs the resolved configuration."""


def _encode(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
