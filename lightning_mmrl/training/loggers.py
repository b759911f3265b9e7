"""Loggers beside the tracker: a stage's metrics as files in its folder."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger


def file_loggers(names: Sequence[str], directory: Path) -> list[Logger]:
    """One logger for each name, in the stage's folder: `csv/metrics.csv`, `tensorboard/events...`."""
    return [LOGGERS[name](directory) for name in dict.fromkeys(names)]


def _csv(directory: Path) -> Logger:
    # A row is written at once: of a run that is killed, no step is missing.
    return CSVLogger(directory, name="csv", version="", flush_logs_every_n_steps=1)


def _tensorboard(directory: Path) -> Logger:
    return TensorBoardLogger(directory, name="tensorboard", version="", default_hp_metric=False)


LOGGERS: Mapping[str, Callable[[Path], Logger]] = {"csv": _csv, "tensorboard": _tensorboard}
