"""Measurements of the machine: means, few points however long a run is, and none after a run has ended."""

import threading

from lightning_mmrl.tracking import system_metrics
from lightning_mmrl.tracking.system_metrics import SystemMetrics

PATIENCE_S = 10.0


class Counter:
    """A collector whose values are 1, 2, 3, ..."""

    def __init__(self, fails_at=None):
        self.taken, self.fails_at, self.values = 0, fails_at, []

    def collect_metrics(self):
        self.taken += 1
        if self.taken == self.fails_at:
            raise RuntimeError("the driver is gone")
        self.values.append(self.taken)

    def aggregate_metrics(self):
        return {"cpu": sum(self.values) / len(self.values)}

    def clear_metrics(self):
        self.values.clear()


class Logged:
    """A run's points; `wait_for` waits until there are that many."""

    def __init__(self):
        self.points, self.changed = [], threading.Condition()

    def __call__(self, values, step, time_s):
        with self.changed:
            self.points.append((dict(values), step, time_s))
            self.changed.notify_all()

    def wait_for(self, number):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.points) >= number, PATIENCE_S)


def test_the_time_between_points_doubles_and_a_point_is_the_mean(monkeypatch):
    monkeypatch.setattr(system_metrics, "MOST_POINTS", 3)
    run, counter = Logged(), Counter()
    measured = SystemMetrics(0.001, lambda: [counter])
    measured.watch("a", run)
    run.wait_for(7)
    measured.close()
    # The first measurement only starts the clock of the processor's load.
    means = [values["system/cpu"] for values, _, _ in run.points[:7]]
    assert means == [2, 3, 4, 5.5, 7.5, 9.5, 12.5]
    assert all(step == int(time_s) for _, step, time_s in run.points)


def test_a_run_that_has_left_gets_no_points_and_others_go_on():
    first, second = Logged(), Logged()
    measured = SystemMetrics(0.001, lambda: [Counter()])
    measured.watch("a", first)
    measured.watch("b", second)
    first.wait_for(2)
    measured.leave("a")
    had = len(first.points)
    second.wait_for(len(second.points) + 3)
    measured.close()
    assert len(first.points) == had
    measured.watch("c", first)
    assert len(first.points) == had, "nothing is measured after the end"


def test_a_collector_that_fails_ends_the_measurements_with_a_warning(monkeypatch):
    said, run = [], Logged()
    monkeypatch.setattr(system_metrics._log, "warning", lambda form, *values: said.append(form % values))
    measured = SystemMetrics(0.001, lambda: [Counter(fails_at=3)])
    measured.watch("a", run)
    run.wait_for(1)
    measured._thread.join(PATIENCE_S)
    measured.close()
    assert said == ["System metrics are no longer measured: RuntimeError: the driver is gone"]
    assert len(run.points) == 1


def test_collectors_of_mlflow_measure_the_processors_and_the_memory():
    found = {}
    for monitor in system_metrics._monitors_of_mlflow():
        monitor.collect_metrics()
        found |= monitor.aggregate_metrics()
    assert 0 <= found["cpu_utilization_percentage"] <= 100
    assert found["system_memory_usage_megabytes"] > 0
