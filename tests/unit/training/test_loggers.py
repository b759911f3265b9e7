"""CSV and TensorBoard files of a stage, written through a real Trainer and read back."""

import csv
import errno
import math

import lightning
import pytest
import torch
from disk_cases import Trap
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from lightning_mmrl.files import take_missing
from lightning_mmrl.settings.stage import TrainerSettings
from lightning_mmrl.training.loggers import file_loggers
from lightning_mmrl.training.trainer import training_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*")


class Reporting(lightning.LightningModule):
    """Reports other keys at other steps; fails before step `fail_at`."""

    def __init__(self, fail_at=None, error=RuntimeError):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self._fail_at, self._error = fail_at, error

    def training_step(self, batch, batch_idx):
        step = batch_idx + 1
        if step == self._fail_at:
            raise self._error("the stage fails")
        self.report({"reason/loss": 1 / step}, step)
        if step == 2:
            self.report({"reason/validation/uar": 0.5, "reason/kl": math.nan}, step)
        return (self.weight * batch).sum()

    def report(self, metrics, step):
        for logger in self.loggers:
            logger.log_metrics(metrics, step)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, directory, names):
    trainer = training_trainer(
        TrainerSettings(accelerator="cpu"),
        directory=directory,
        logger=file_loggers(names, directory),
        callbacks=[],
        validate_every=None,
        gradient_clip_val=None,
    )
    trainer.fit(module, DataLoader(torch.ones(3, 1)))


def rows(directory):
    with (directory / "csv" / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


EXPECTED = [
    {"step": "1", "reason/loss": "1.0"},
    {"step": "2", "reason/loss": "0.5"},
    {"step": "2", "reason/validation/uar": "0.5", "reason/kl": "nan"},
    {"step": "3", "reason/loss": str(1 / 3)},
]


def test_csv_keeps_every_key_with_its_step(tmp_path):
    fit(Reporting(), tmp_path, ["csv"])
    assert rows(tmp_path) == EXPECTED


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_csv_has_the_steps_before_a_crash(tmp_path, error):
    with pytest.raises((error, SystemExit)):
        fit(Reporting(fail_at=3, error=error), tmp_path, ["csv"])
    assert rows(tmp_path) == EXPECTED[:3]


def test_csv_has_every_step_without_a_last_word(tmp_path):
    [logger] = file_loggers(["csv"], tmp_path)
    logger.log_metrics({"a": 1.0}, 1)
    logger.log_metrics({"a": 2.0, "b": 1.0}, 2)
    assert rows(tmp_path) == [{"step": "1", "a": "1.0"}, {"step": "2", "a": "2.0", "b": "1.0"}]


def test_tensorboard_keeps_every_key_with_its_step(tmp_path):
    fit(Reporting(), tmp_path, ["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {key: [(event.step, event.value) for event in events.Scalars(key)] for key in events.Tags()["scalars"]}
    assert found["reason/loss"] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert found["reason/validation/uar"] == [(2, 0.5)]


def test_both_at_once_and_none(tmp_path):
    fit(Reporting(), tmp_path, ["csv", "tensorboard", "csv"])
    assert rows(tmp_path) == EXPECTED
    assert len(list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))) == 1
    assert file_loggers([], tmp_path) == []


@pytest.mark.parametrize("name", ["csv", "tensorboard"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_training_goes_on_without_a_logger_whose_disk_refuses(tmp_path, name, code):
    """Its folder cannot be made."""
    trap = Trap()
    trap.refuse([f"{tmp_path}/{name}*"], code)
    try:
        fit(Reporting(), tmp_path, [name])
    finally:
        trap.clear()
    (missing,) = take_missing()
    assert f"are missing in {tmp_path} (" in missing
    assert not (tmp_path / name).exists()
