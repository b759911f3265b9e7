"""Lightning's metrics reach the run and the local file."""

import json
import math

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only

from lightning_mmrl.tracking.lightning_logger import RunLogger
from lightning_mmrl.tracking.null import NullRun


class RecordingRun(NullRun):
    """Keeps what it is asked to log."""

    def __init__(self):
        super().__init__("4f2a")
        self.calls = []

        self.times = []

    def log_metrics(self, metrics, step, time_s=None):
        self.calls.append((dict(metrics), step))
        self.times.append(time_s)


def read(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_call_reaches_the_run_and_is_one_line_of_the_file(tmp_path):
    run = RecordingRun()
    logger = RunLogger(run, tmp_path / "01-reason")
    logger.log_metrics({"reason/loss": torch.tensor(0.5), "epoch": 0}, step=3)
    logger.log_metrics({"reason/loss": 0.25}, step=4)
    lines = read(tmp_path / "01-reason")
    assert run.calls == [({"reason/loss": 0.5}, 3), ({"reason/loss": 0.25}, 4)]
    assert [(line["step"], line["metrics"]) for line in lines] == [
        (3, {"reason/loss": 0.5}),
        (4, {"reason/loss": 0.25}),
    ]
    assert lines[0]["time"] <= lines[1]["time"]
    assert (logger.name, logger.version, logger.save_dir) == ("01-reason", "4f2a", str(tmp_path / "01-reason"))


def test_a_new_process_repeats_no_point_and_sends_the_last_ones_again(tmp_path):
    """The server may lack what was on its way when the first process was killed; the same point twice is one point."""
    first, second = RecordingRun(), RecordingRun()
    logger = RunLogger(first, tmp_path)
    logger.log_metrics({"loss": 0.5}, step=3)
    logger.log_metrics({"loss": math.inf}, step=4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ti')
    logger = RunLogger(second, tmp_path)
    logger.log_metrics({"loss": 0.25, "validation": 0.75}, step=4)
    logger.log_metrics({"loss": 0.125}, step=5)
    assert second.calls == [
        ({"loss": 0.5}, 3),
        ({"loss": math.inf}, 4),
        ({"validation": 0.75}, 4),
        ({"loss": 0.125}, 5),
    ]
    assert second.times[:2] == first.times
    assert RunLogger(NullRun("run"), tmp_path)._logged == {3: {"loss"}, 4: {"loss", "validation"}, 5: {"loss"}}


def test_the_epoch_alone_is_not_logged(tmp_path):
    run = RecordingRun()
    RunLogger(run, tmp_path).log_metrics({"epoch": 1}, step=1)
    assert run.calls == []
    assert not (tmp_path / "metrics.jsonl").exists()


def test_values_that_are_not_finite_stay_readable(tmp_path):
    run = RecordingRun()
    RunLogger(run, tmp_path).log_metrics({"a": math.nan, "b": -math.inf, "c": 1.0}, step=0)
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda name: f"not JSON: {name}")
    assert line["metrics"] == {"a": "nan", "b": "-inf", "c": 1.0}
    assert math.isnan(run.calls[0][0]["a"])


def test_only_rank_zero_logs(tmp_path, monkeypatch):
    run = RecordingRun()
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    RunLogger(run, tmp_path).log_metrics({"a": 1.0}, step=0)
    assert run.calls == []
    assert not (tmp_path / "metrics.jsonl").exists()


class Regression(pl.LightningModule):
    """A loss of one linear layer, logged at each step."""

    def __init__(self):
        super().__init__()
        self.save_hyperparameters({"width": 2})
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.log("fit/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(4, 2))


def test_a_trainer_logs_through_it(tmp_path):
    run = RecordingRun()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=RunLogger(run, tmp_path),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Regression())
    assert [step for _, step in run.calls] == [0, 1, 2, 3]
    assert all(set(metrics) == {"fit/loss"} for metrics, _ in run.calls)
    assert [line["step"] for line in read(tmp_path)] == [0, 1, 2, 3]
