"""A stage job: a LightningModule, a LightningDataModule and a Trainer."""

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning

from lightning_mmrl.errors import StageError
from lightning_mmrl.training.callbacks.exact_state import ExactState
from lightning_mmrl.training.finite_states import CHECKPOINT, REMEDY, not_finite_anywhere, saved_weights
from lightning_mmrl.training.group import RankGroup
from lightning_mmrl.training.state_store import StateStore
from lightning_mmrl.types.records import Training


@contextmanager
def raising_interrupts() -> Iterator[None]:
    """Raises KeyboardInterrupt where Lightning's trainer raises SystemExit, which would look like a failure.

    Raises:
        KeyboardInterrupt: The trainer was interrupted.
        StageError: Code that the trainer ran called `sys.exit`; the message has its file and line.
    """
    try:
        yield
    except SystemExit as error:
        interrupt = error.__context__  # Lightning exits while it handles the interrupt
        if isinstance(interrupt, KeyboardInterrupt):
            raise interrupt from error
        line = traceback.extract_tb(error.__traceback__)[-1]
        raise StageError(
            f"{line.filename} line {line.lineno}: sys.exit({error.code!r}) would end the run; "
            "raise an exception there instead"
        ) from error


@dataclass(frozen=True, kw_only=True)
class LightningJob:
    """Implements `StageJob` for a stage that trains: it makes one artifact, the handoff.

    Attributes:
        exporter: Writes the Hugging Face folder.
        states: The states that an unfinished stage left.
        saver: The trainer's callback that saves states.
        say: Shows the user a line.
        facts: Facts that a user of the handoff must know.
        group: The ranks; rank 0 decides which state a stage resumes from.
        resources: Resources to close when training ends, whether or not it fails.
    """

    trainer: lightning.Trainer
    module: Any
    datamodule: lightning.LightningDataModule
    exporter: Callable[[Path], None]
    states: StateStore
    saver: ExactState
    say: Callable[[str], None]
    facts: Mapping[str, Any] = field(default_factory=dict)
    group: RankGroup = field(default_factory=RankGroup)
    resources: ExitStack = field(default_factory=ExitStack)

    def run(self) -> Training:
        """Trains the module, from its newest state if there is one, and returns the outcome.

        Raises:
            KeyboardInterrupt: The run was interrupted (`Interrupted`, if by a signal).
            StageError: There are states, but none of them is intact; or the stage ended before its last step, or ended
                itself because numbers were not finite.
        """
        found = self.group.broadcast(self.states.latest() if self.group.leads else None)
        checkpoint = None
        if found is not None:
            self.say(f"continuing after step {found.step}")
            self.saver.resume(found)
            checkpoint = found.folder / CHECKPOINT
        with self.resources, raising_interrupts():
            self.trainer.fit(self.module, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True)
        return self.module.outcome()

    def export(self, artifact: str, directory: Path) -> Mapping[str, Any]:
        """Writes the Hugging Face folder.

        Raises:
            StageError: A weight of any rank is not finite; raised on all ranks.
        """
        problem = not_finite_anywhere(saved_weights(self.module), self.group.ranks)
        if problem is not None:
            raise StageError(
                f"{self.states.directory.parent}: {problem}, so nothing is written as the handoff; {REMEDY}"
            )
        self.exporter(directory)
        return self.facts
