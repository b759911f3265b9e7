"""Loggers that write a stage's metrics as files in its folder, in addition to the tracker."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor

from lightning_mmrl.files import dispensable

_ROWS, _EVENTS = "rows of csv/metrics.csv", "events of TensorBoard"


def file_loggers(names: Sequence[str], directory: Path) -> list[Logger]:
    """One logger for each name, in the stage's folder: `csv/metrics.csv`, `tensorboard/events...`."""
    return [LOGGERS[name](directory) for name in dict.fromkeys(names)]


class _Nowhere:
    """Stands in for a writer that cannot be opened because the disk refuses; every method does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class _CSV(CSVLogger):
    """A CSV logger that drops rows that the disk refuses, so that training goes on."""

    @property
    def experiment(self) -> Any:
        with dispensable(_ROWS, Path(self.save_dir)):
            return super().experiment
        return _Nowhere()

    def log_metrics(self, metrics: dict[str, Tensor | float], step: int | None = None) -> None:  # type: ignore[override]
        with dispensable(_ROWS, Path(self.save_dir)):
            super().log_metrics(metrics, step)

    def save(self) -> None:
        with dispensable(_ROWS, Path(self.save_dir)):
            super().save()


class _TensorBoard(TensorBoardLogger):
    """A TensorBoard logger that drops events that the disk refuses, so that training goes on."""

    @property
    def experiment(self) -> Any:
        with dispensable(_EVENTS, Path(str(self.save_dir))):
            return super().experiment
        return _Nowhere()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with dispensable(_EVENTS, Path(str(self.save_dir))):
            super().log_metrics(metrics, step)

    def save(self) -> None:
        with dispensable(_EVENTS, Path(str(self.save_dir))):
            super().save()

    def finalize(self, status: str) -> None:
        with dispensable(_EVENTS, Path(str(self.save_dir))):
            super().finalize(status)


LOGGERS: Mapping[str, Callable[[Path], Logger]] = {
    # A row is written at once, so that a killed run misses no step.
    "csv": partial(_CSV, name="csv", version="", flush_logs_every_n_steps=1),
    "tensorboard": partial(_TensorBoard, name="tensorboard", version="", default_hp_metric=False),
}
