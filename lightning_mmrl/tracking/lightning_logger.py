"""Passes Lightning's metrics on to a tracked run, and keeps a local copy."""

import math
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_mmrl.files import dispensable
from lightning_mmrl.protocols.plain import TrackedRun
from lightning_mmrl.tracking.jsonl import append_lines, read_lines

MOST_REPEATED = 1000
"""Number of lines of an earlier process that are read; a resumed stage repeats at most the last few of them."""


class RunLogger(Logger):
    """Lightning's logger over a `TrackedRun`; only rank 0 logs.

    Each call is also one line of `<directory>/metrics.jsonl`, `{"step": 3, "time": 1790000000.0, "metrics": {...}}`,
    with `time` in seconds since 1970 and a value that is not finite as the string "nan", "inf" or "-inf". The key
    "epoch", which Lightning adds, is dropped. If the disk refuses a line, training goes on without it.

    A stage that is resumed in a new process reads the file. Points that it computes again are not logged again. The
    last points of the file are sent once more, with their original time, in case the first process was killed before
    they were delivered; a tracker stores a point only once.

    Args:
        run: Where metrics go; the caller, who opened the run, finishes it.
        directory: Folder of the local copy.
    """

    def __init__(self, run: TrackedRun, directory: Path) -> None:
        super().__init__()
        self._run = run
        self._directory = directory
        self._file = directory / "metrics.jsonl"
        self._logged: defaultdict[int, set[str]] = defaultdict(set)
        self._take_up()

    @rank_zero_only
    def _take_up(self) -> None:
        """Reads and sends again the last lines that an earlier process logged."""
        for record in read_lines(self._file)[-MOST_REPEATED:]:
            values = {key: float(value) for key, value in record["metrics"].items()}
            self._logged[record["step"]] |= values.keys()
            self._run.log_metrics(values, record["step"], record["time"])

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
        step, now = step or 0, time.time()
        known = self._logged.get(step, set())
        values = {key: float(value) for key, value in metrics.items() if key != "epoch" and key not in known}
        if not values:
            return
        written = {key: value if math.isfinite(value) else str(value) for key, value in values.items()}
        with dispensable("lines of metrics.jsonl", self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            append_lines(self._file, [{"step": step, "time": now, "metrics": written}])
        self._run.log_metrics(values, step, now)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing, because the orchestrator logs the resolved configuration."""
