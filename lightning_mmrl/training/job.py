"""A stage made of a LightningModule, a LightningDataModule and a Trainer."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import lightning

from lightning_mmrl.training.callbacks.exact_state import CHECKPOINT, ExactState
from lightning_mmrl.training.group import RankGroup
from lightning_mmrl.training.state_store import StateStore


@contextmanager
def raising_interrupts() -> Iterator[None]:
    """Raises the KeyboardInterrupt that Lightning's trainers turn into an exit, which would read as a failure."""
    try:
        yield
    except SystemExit as error:
        interrupt = error.__context__
        raise (interrupt if isinstance(interrupt, KeyboardInterrupt) else KeyboardInterrupt()) from error


class ReportingModule(Protocol):
    """A LightningModule that keeps its last metrics in `latest`."""

    latest: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class LightningJob:
    """Implements `StageJob`: fits, then exports.

    Attributes:
        exporter: Writes the Hugging Face folder.
        states: Where an unfinished stage left its states.
        saver: Saves them; one of the trainer's callbacks.
        say: Tells the user what happens.
        group: The ranks; the first one says where a stage continues.
        resources: Closed when training ends, however it ends.
    """

    trainer: lightning.Trainer
    module: Any
    datamodule: lightning.LightningDataModule
    exporter: Callable[[Path], None]
    states: StateStore
    saver: ExactState
    say: Callable[[str], None]
    group: RankGroup = field(default_factory=RankGroup)
    resources: ExitStack = field(default_factory=ExitStack)

    def train(self) -> Mapping[str, float]:
        """Fits the module, from its newest state if there is one, and returns its last metrics.

        Raises:
            KeyboardInterrupt: The run was interrupted (`Interrupted`, if by a signal).
            StageError: There are states, and none of them is whole.
        """
        found = self.group.broadcast(self.states.latest() if self.group.leads else None)
        checkpoint = None
        if found is not None:
            self.say(f"continuing after step {found.step}")
            self.saver.resume(found)
            checkpoint = found.folder / CHECKPOINT
        with self.resources, raising_interrupts():
            self.trainer.fit(self.module, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True)
        return dict(self.module.latest)

    def export(self, directory: Path) -> None:
        """Writes the Hugging Face folder."""
        self.exporter(directory)
