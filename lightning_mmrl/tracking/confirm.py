"""Whether a run, as the server has it, holds what was sent."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient


def has_points(client: "MlflowClient", run: "Run", points: Sequence["Metric"]) -> bool:
    """Whether the server has the points of one batch.

    A batch is one transaction, so one point of each key stands for those of its key. It is the newest one, which a run
    carries; where the server has newer ones, the key's history is read.
    """
    newest = {metric.key: _place(metric) for metric in run.data._metric_objs}
    last: dict[str, tuple[int, int]] = {}
    for point in points:
        last[point.key] = max(last.get(point.key, _place(point)), _place(point))
    for key, place in last.items():
        known = newest.get(key)
        if known is None or known < place:
            return False
        if known != place and place not in map(_place, client.get_metric_history(run.info.run_id, key)):
            return False
    return True


def has_tags(run: "Run", tags: Mapping[str, str]) -> bool:
    return all(run.data.tags.get(key) == value for key, value in tags.items())


def has_params(run: "Run", params: Mapping[str, str]) -> bool:
    return all(run.data.params.get(key) == value for key, value in params.items())


def _place(metric: "Metric") -> tuple[int, int]:
    """Step and time; not the value, which a database may round."""
    return metric.step, metric.timestamp
