"""Saves a stage so that it goes on as if it had not been interrupted, bit for bit."""

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch.distributed.checkpoint.api import CheckpointException

from lightning_mmrl.errors import MachineError, StageError
from lightning_mmrl.machine import refusal
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.settings.run import StateSettings
from lightning_mmrl.training.checkpoint_io import SnapshotIO
from lightning_mmrl.training.finite_states import CHECKPOINT, FINITE, REMEDY, not_finite_anywhere, saved_tensors
from lightning_mmrl.training.interruption import Interrupted, Interruption
from lightning_mmrl.training.ranks import ProcessRanks
from lightning_mmrl.training.rng import restore_rng, rng_state
from lightning_mmrl.training.state_store import StateStore, StoredState
from lightning_mmrl.training.stored import read_stored


class ExactState(Callback):
    """Saves at the borders between steps, and on the way out; continues from what `resume` is given.

    A border lies behind a finished step, and again behind its validation. What is small there (loop counters, consumed
    samples, the stage's own notes, random generators) is kept in memory. Weights and optimizer do not change from one
    border to the optimizer step that follows, so a stage that is interrupted anywhere in between is saved as it was at
    the border; from the optimizer step to the next border the interruption waits.

    Lightning saves no random generators, and a checkpoint it takes after a batch skips the validation that is due then.

    Args:
        store: Where states lie.
        interruption: Held back while weights change or a state is written.
        io: The checkpoint plugin of the trainer.
        settings: When states are saved.
        say: Tells the user what happens.
    """

    def __init__(
        self,
        store: StateStore,
        interruption: Interruption,
        io: SnapshotIO,
        *,
        settings: StateSettings,
        say: Callable[[str], None],
    ) -> None:
        self._store = store
        self._interruption = interruption
        self._io = io
        self._settings = settings
        self._say = say
        self._resumed: StoredState | None = None
        self._border: dict[str, Any] = {}
        self._step = self._saved_step = 0
        self._generators: dict[str, Any] = {}
        self._writer: _Writer | None = None
        self._ranks: Ranks = ALONE

    def resume(self, state: StoredState) -> None:
        """Continues the random generators of a state; the rest is in its checkpoint, which Lightning loads."""
        self._resumed = state
        self._saved_step = state.step

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Listens to signals in Lightning's place; restores the generators, after the loaders have drawn from them."""
        self._interruption.listen()
        if trainer.world_size > 1:
            self._ranks = ProcessRanks(lockstep=False)
        if self._resumed is not None:
            path = _generators_file(self._resumed.folder, trainer.global_rank)
            if path.exists():
                restore_rng(read_stored(path))
            else:
                self._say(f"rank {trainer.global_rank} is new; its random generators start anew")

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """From here to the border the weights are of no step."""
        self._interruption.hold()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """A border: saves where it is time.

        Raises:
            StageError: The weights or the optimizer's state are not finite; nothing was written, on no rank.
        """
        self._interruption.hold()
        self._finish_writing()
        self._step = batch_idx + 1
        self._take_border(trainer, validated=False)
        last = self._step == trainer.num_training_batches
        if last or self._step % self._settings.every_n_steps == 0:
            problem = self._not_finite(trainer)
            if problem is not None:
                where = self._store.directory
                raise StageError(f"{where}: {problem} after step {self._step}, so no state is saved; {REMEDY}")
            self._save(trainer)
        self._interruption.release()
        self._interruption.safe_point()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """A border: the validation is behind it."""
        self._take_border(trainer, validated=True)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Puts what was true at the border in the place of what is true now."""
        checkpoint.update(self._border)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Waits for what is still being written."""
        self._finish_writing()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Saves the last border, if the weights are still those of it and all ranks are here."""
        torn = self._interruption.holding
        # Any other error may be one rank's own, and the others elsewhere.
        together = self._ranks.world_size == 1 or isinstance(exception, Interrupted)
        with self._interruption.held():
            if together:
                self._finish_writing()
                if self._border and self._step > self._saved_step and not torn:
                    self._save_on_the_way_out(trainer)
            elif self._writer is not None:
                self._writer.finish()
        if self._saved_step:
            self._say(f"the same command continues after step {self._saved_step}")

    def _save_on_the_way_out(self, trainer: lightning.Trainer) -> None:
        problem = self._not_finite(trainer)
        if problem is not None:
            self._say(f"{problem} after step {self._step}, so no state is saved")
            return
        self._save(trainer)
        self._finish_writing()

    def _not_finite(self, trainer: lightning.Trainer) -> str | None:
        """The first part of the state that is not finite on any rank; a collective."""
        return not_finite_anywhere(saved_tensors(trainer.lightning_module, trainer.optimizers), self._ranks)

    def _take_border(self, trainer: lightning.Trainer, *, validated: bool) -> None:
        self._border = {"loops": {"fit_loop": _border_loops(trainer.fit_loop.state_dict(), validated=validated)}}
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if datamodule is not None:
            self._border[type(datamodule).__qualname__] = datamodule.state_dict()
        self._generators = rng_state()

    def _save(self, trainer: lightning.Trainer) -> None:
        """Writes the border, in the background if that is possible and wanted; a collective."""
        step, rank, folder = self._step, self._ranks.rank, self._store.partial(self._step)
        problem = self._agreed(_attempt(partial(self._store.begin, step)) if rank == 0 else None)
        if problem is None:
            trainer.save_checkpoint(folder / CHECKPOINT, weights_only=False)
            problem = self._agreed(_attempt(partial(torch.save, self._generators, _generators_file(folder, rank))))
        write = self._io.take()
        if problem is not None:
            self._failed(problem)
            return
        self._saved_step = step
        facts = {"world_size": trainer.world_size, FINITE: True}
        commit = partial(self._store.commit, step, facts) if rank == 0 else None
        self._writer = _Writer(partial(write, folder / CHECKPOINT) if write is not None else None, commit)
        self._writer.start(in_background=self._settings.in_background)

    def _finish_writing(self) -> None:
        """Waits for what is being written; a collective if anything is, as it then is on all ranks."""
        if self._writer is not None:
            problem, self._writer = self._agreed(self._writer.finish()), None
            if problem is not None:
                self._failed(problem)

    def _failed(self, problem: str) -> None:
        if self._ranks.rank == 0:
            with suppress(OSError):  # of a disk that became read-only nothing can be removed
                self._store.clear_partial()
        found = self._ranks.gather(self._store.newest_step())[0]
        self._saved_step = found or 0
        last = "there is none yet" if found is None else f"the last one is that of step {found}"
        self._say(f"the state after step {self._step} could not be saved ({problem}); training goes on, {last}")

    def _agreed(self, problem: str | None) -> str | None:
        """The first rank's problem on every rank."""
        return next((each for each in self._ranks.gather(problem) if each is not None), None)


class _Writer:
    """Writes one state: this rank's part of it, and on the first rank what makes it a state."""

    def __init__(self, write: Callable[[], None] | None, commit: Callable[[], Any] | None) -> None:
        self._write, self._commit = write, commit
        self._thread: threading.Thread | None = None
        self._problem: str | None = None

    def start(self, *, in_background: bool) -> None:
        if in_background:
            self._thread = threading.Thread(target=self._run, name="mmrl-state")
            self._thread.start()
        else:
            self._run()

    def finish(self) -> str | None:
        """Waits; what went wrong, if anything did."""
        if self._thread is not None:
            self._thread.join()
        return self._problem

    def _run(self) -> None:
        for part in (self._write, self._commit):
            if part is not None and self._problem is None:
                self._problem = _attempt(part)
        self._write = None  # with its copy of the state


def _attempt(write: Callable[[], Any]) -> str | None:
    """Runs what writes to the disk; why it could not, or None.

    torch.save hides the disk's error in a RuntimeError, and DCP those of all ranks in a CheckpointException.
    """
    try:
        write()
    except (OSError, RuntimeError, MemoryError, MachineError, CheckpointException) as error:
        found = refusal(error)
        return str(error).splitlines()[0] if found is None else found.problem
    return None


def _generators_file(folder: Path, rank: int) -> Path:
    return folder / f"generators-{rank:05d}.pt"


def _border_loops(loops: dict[str, Any], *, validated: bool) -> dict[str, Any]:
    """Lightning's loop counters as they stand behind a step, with its validation behind it or still to come.

    Lightning asks these counters where a checkpoint was taken. Behind a batch it would skip the validation that is due;
    a validation that has begun and judged nothing is run from its start, and passed over where none is due.
    """
    batches, validation = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
    for part in ("total", "current"):
        batches[part]["completed"] = batches[part]["processed"]
        done = int(validated)
        validation[part] = {"ready": 1, "started": 1, "processed": done, "completed": done}
    validation["is_last_batch"] = validated
    return loops
