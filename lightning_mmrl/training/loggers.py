"""Loggers beside the tracker: a stage's metrics as files in its folder."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor

from lightning_mmrl.files import dispensable


def file_loggers(names: Sequence[str], directory: Path) -> list[Logger]:
    """One logger for each name, in the stage's folder: `csv/metrics.csv`, `tensorboard/events...`."""
    return [LOGGERS[name](directory) for name in dict.fromkeys(names)]


class _Nowhere:
    """Takes the place of a writer that the disk refuses, and whatever is asked of it."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class _CSV(CSVLogger):
    """Training goes on without the rows that the disk refuses."""

    @property
    def experiment(self) -> Any:
        with self._dispensable():
            return super().experiment
        return _Nowhere()

    def log_metrics(self, metrics: dict[str, Tensor | float], step: int | None = None) -> None:  # type: ignore[override]
        with self._dispensable():
            super().log_metrics(metrics, step)

    def save(self) -> None:
        with self._dispensable():
            super().save()

    def _dispensable(self) -> AbstractContextManager[None]:
        return dispensable("rows of csv/metrics.csv", Path(self.save_dir))


class _TensorBoard(TensorBoardLogger):
    """Training goes on without the events that the disk refuses."""

    @property
    def experiment(self) -> Any:
        with self._dispensable():
            return super().experiment
        return _Nowhere()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self._dispensable():
            super().log_metrics(metrics, step)

    def save(self) -> None:
        with self._dispensable():
            super().save()

    def finalize(self, status: str) -> None:
        with self._dispensable():
            super().finalize(status)

    def _dispensable(self) -> AbstractContextManager[None]:
        return dispensable("events of TensorBoard", Path(str(self.save_dir)))


def _csv(directory: Path) -> Logger:
    # A row is written at once: of a run that is killed, no step is missing.
    return _CSV(directory, name="csv", version="", flush_logs_every_n_steps=1)


def _tensorboard(directory: Path) -> Logger:
    return _TensorBoard(directory, name="tensorboard", version="", default_hp_metric=False)


LOGGERS: Mapping[str, Callable[[Path], Logger]] = {"csv": _csv, "tensorboard": _tensorboard}
