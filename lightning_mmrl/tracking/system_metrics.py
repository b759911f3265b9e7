"""Measures this machine while runs are open: load of processors and GPUs, and memory."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

_log = logging.getLogger("lightning_mmrl.tracking")

PREFIX = "system/"
"""Prefix of metrics that MLflow's page of a run shows under System metrics."""
MOST_POINTS = 360
"""Points of a metric until the time between two points doubles; once more for each further doubling."""

Log = Callable[[Mapping[str, float], int, float], None]
"""Logs values at a step and a time in seconds since 1970."""


class Monitor(Protocol):
    """One of MLflow's collectors."""

    def collect_metrics(self) -> None: ...

    def aggregate_metrics(self) -> dict[str, float]: ...

    def clear_metrics(self) -> None: ...


class SystemMetrics:
    """Logs the means of what MLflow's collectors measure to all open runs, on a thread of its own.

    Values are of the whole machine that this process runs on: all its processors and GPUs, but no other node. The step
    of a point is its time in whole seconds since 1970, so steps of a run that is continued go on rising. The time
    between two points doubles each time that `MOST_POINTS` are logged: a stage of a month has about 4000 points.

    Args:
        every_s: Seconds between two measurements.
        monitors: Makes the collectors; the default takes MLflow's, for GPUs only where their driver and the package
            nvidia-ml-py (or pyrsmi) are installed.
    """

    def __init__(self, every_s: float, monitors: Callable[[], list[Monitor]] | None = None) -> None:
        self._every_s = every_s
        self._make = monitors or _monitors_of_mlflow
        self._runs: dict[str, Log] = {}
        self._guard = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, run_id: str, log: Log) -> None:
        """Logs to a run from now on, until `leave`."""
        with self._guard:
            self._runs[run_id] = log
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._work, name="mmrl-system-metrics", daemon=True)
                self._thread.start()

    def leave(self, run_id: str) -> None:
        """Logs no more to a run."""
        with self._guard:
            self._runs.pop(run_id, None)

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            monitors = self._make()
            for monitor in monitors:
                monitor.collect_metrics()  # the load of a processor is that since the previous call
                monitor.clear_metrics()
            num_points, per_point = 0, 1
            while self._measured(monitors, per_point):
                num_points += 1
                if num_points == MOST_POINTS:
                    num_points, per_point = 0, 2 * per_point
        except Exception as error:  # whatever a driver raises: training must not end with it
            _log.warning("System metrics are no longer measured: %s: %s", type(error).__name__, error)

    def _measured(self, monitors: list[Monitor], times: int) -> bool:
        """Measures `times` times and logs the means; False once this is closed."""
        for _ in range(times):
            if self._closing.wait(self._every_s):
                return False
            for monitor in monitors:
                monitor.collect_metrics()
        now, values = time.time(), dict[str, float]()
        for monitor in monitors:
            values.update({f"{PREFIX}{name}": float(value) for name, value in monitor.aggregate_metrics().items()})
            monitor.clear_metrics()
        with self._guard:  # so that nothing is logged after `leave`
            for log in self._runs.values():
                log(values, int(now), now)
        return True


def _monitors_of_mlflow() -> list[Monitor]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    found: list[Monitor] = [CPUMonitor()]
    for kind in (GPUMonitor, ROCMMonitor):
        try:
            found.append(kind())
        except Exception as error:  # without a GPU, its driver or the package: each raises its own
            _log.debug("%s: %s", kind.__name__, error)
    return found
