"""A stage made of a LightningModule, a LightningDataModule and a Trainer."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import lightning
from lightning.pytorch.utilities.exceptions import SIGTERMException


class ReportingModule(Protocol):
    """A LightningModule that keeps its last metrics in `latest`."""

    latest: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class LightningJob:
    """Implements `StageJob`: fits, then exports.

    `resources` are closed when training ends, however it ends.
    """

    trainer: lightning.Trainer
    module: Any
    datamodule: lightning.LightningDataModule
    exporter: Callable[[Path], None]
    resources: ExitStack = field(default_factory=ExitStack)

    def train(self) -> Mapping[str, float]:
        """Fits the module and returns its last metrics.

        Raises:
            KeyboardInterrupt: The run was interrupted; Lightning turns that into an exit, which would read as a
            failure.
        """
        with self.resources:
            try:
                self.trainer.fit(self.module, datamodule=self.datamodule)
            except (SystemExit, SIGTERMException) as error:
                raise KeyboardInterrupt from error
        if self.trainer.interrupted:
            raise KeyboardInterrupt
        return dict(self.module.latest)

    def export(self, directory: Path) -> None:
        """Writes the Hugging Face folder."""
        self.exporter(directory)
