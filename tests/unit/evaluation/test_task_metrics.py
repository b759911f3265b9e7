import math
import pickle

import pytest
import torch

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.task_metrics import TaskMetrics
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels

TASK = ClosedLabels(labels=("angry", "happy", "sad"))


def prediction(truth, predicted, *, valid_format=True, consistent=None):
    return Judgement(
        sample_id="x",
        speaker=None,
        truth=truth,
        predicted=predicted,
        valid_format=valid_format,
        consistent=consistent,
        text="",
    )


PREDICTIONS = [
    prediction("angry", "angry", consistent=True),
    prediction("angry", "angry", consistent=False),
    prediction("angry", "happy", consistent=True),
    prediction("angry", None, valid_format=False, consistent=False),
    prediction("happy", "happy", valid_format=False, consistent=True),
]


def computed(*batches):
    metrics = TaskMetrics(TASK)
    for batch in batches:
        metrics.update(batch)
    return metrics.compute()


def test_values_by_hand():
    values = computed(PREDICTIONS)
    assert values == pytest.approx(
        {
            "war": 3 / 5,
            "uar": (2 / 4 + 1) / 2,
            "macro_f1": (4 / 6 + 2 / 3) / 2,
            "weighted_f1": (4 * 4 / 6 + 1 * 2 / 3) / 5,
            "valid_format": 3 / 5,
            "unparseable": 1 / 5,
            "consistency": 3 / 5,
            "grounded": 2 / 5,
            "recall/angry": 2 / 4,
            "recall/happy": 1.0,
        }
    )
    assert all(type(value) is float for value in values.values())


def test_batches_add_up():
    assert computed(PREDICTIONS[:1], [], PREDICTIONS[1:]) == computed(PREDICTIONS)


def test_consistency_is_there_only_if_it_was_judged():
    assert "consistency" not in computed([prediction("sad", "sad")])
    assert "grounded" not in computed([prediction("sad", "sad")])
    assert computed([prediction("sad", "sad", consistent=False)])["consistency"] == 0.0


def test_reset_forgets():
    metrics = TaskMetrics(TASK)
    metrics.update(PREDICTIONS)
    metrics.reset()
    metrics.update([prediction("sad", "sad")])
    assert metrics.compute()["war"] == 1.0


def test_no_predictions_give_nan():
    values = computed([])
    assert math.isnan(values["war"])
    assert math.isnan(values["valid_format"])


def test_every_state_is_summed_over_ranks():
    """Adding the states of two shards, as the reduction does, equals one process."""
    shards = [TaskMetrics(TASK), TaskMetrics(TASK)]
    shards[0].update(PREDICTIONS[:2])
    shards[1].update(PREDICTIONS[2:])
    joined = TaskMetrics(TASK)
    joined.update([])
    for name, reduction in joined._reductions.items():
        values = torch.stack([getattr(shard, name) for shard in shards])
        setattr(joined, name, reduction(values))
    assert joined.compute() == computed(PREDICTIONS)
    assert set(joined._reductions) == {"sums"}


def test_an_unknown_label_is_an_error():
    with pytest.raises(DataError, match="calm"):
        computed([prediction("calm", "sad")])


def test_state_survives_pickling():
    metrics = TaskMetrics(TASK)
    metrics.update(PREDICTIONS)
    assert pickle.loads(pickle.dumps(metrics)).compute() == computed(PREDICTIONS)
