"""Loggers beside the tracker: a stage's metrics as files in its folder."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor

from lightning_mmrl.files import dispensable


def file_loggers(names: Sequence[str], directory: Path) -> list[Logger]:
    """One logger for each name, in the stage's folder: `csv/metrics.csv`, `tensorboard/events...`."""
    return [LOGGERS[name](directory) for name in dict.fromkeys(names)]


class _CSV(CSVLogger):
    """Training goes on without the rows that the disk refuses."""

    def log_metrics(self, metrics: dict[str, Tensor | float], step: int | None = None) -> None:  # type: ignore[override]
        with dispensable("rows of csv/metrics.csv", Path(self.save_dir)):
            super().log_metrics(metrics, step)

    def save(self) -> None:
        with dispensable("rows of csv/metrics.csv", Path(self.save_dir)):
            super().save()


class _TensorBoard(TensorBoardLogger):
    """Training goes on without the events that the disk refuses."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with dispensable("events of TensorBoard", Path(str(self.save_dir))):
            super().log_metrics(metrics, step)

    def save(self) -> None:
        with dispensable("events of TensorBoard", Path(str(self.save_dir))):
            super().save()

    def finalize(self, status: str) -> None:
        with dispensable("events of TensorBoard", Path(str(self.save_dir))):
            super().finalize(status)


def _csv(directory: Path) -> Logger:
    # A row is written at once: of a run that is killed, no step is missing.
    return _CSV(directory, name="csv", version="", flush_logs_every_n_steps=1)


def _tensorboard(directory: Path) -> Logger:
    return _TensorBoard(directory, name="tensorboard", version="", default_hp_metric=False)


LOGGERS: Mapping[str, Callable[[Path], Logger]] = {"csv": _csv, "tensorboard": _tensorboard}
