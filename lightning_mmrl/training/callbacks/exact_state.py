"""Saves a stage so that a resumed run equals an uninterrupted one, bit for bit."""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch.distributed.checkpoint.api import CheckpointException

from lightning_mmrl.errors import MachineError, RolloutError, StageError
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

GENERATORS = "generators-{:05d}.pt"
"""File of a rank's random generators in a state."""


class ExactState(Callback):
    """Saves at safe points between steps and when a run ends early; `resume` continues from a saved state.

    A safe point comes after each finished step, and after the validation of that step. There the small values (loop
    counters, consumed samples, the stage's own values, random generators) are copied in memory. Weights and optimizer
    do not change from a safe point to the next optimizer step, so an interruption in between saves the stage as it was
    at the safe point. From the optimizer step to the next safe point the interruption waits.

    Lightning's own checkpoints do not suffice: they have no random generators, and a run that resumes from one taken
    after a batch skips the validation that is due then.

    Args:
        store: Folder of the states.
        interruption: Held back while weights change or a state is written.
        io: The checkpoint plugin of the trainer.
        settings: When states are saved.
        say: Shows the user a line.
        timed: Entered, with the name `state`, around the writing of states.
    """

    def __init__(
        self,
        store: StateStore,
        interruption: Interruption,
        io: SnapshotIO,
        *,
        settings: StateSettings,
        say: Callable[[str], None],
        timed: Callable[[str], AbstractContextManager[None]] = lambda phase: nullcontext(),
    ) -> None:
        self._store = store
        self._interruption = interruption
        self._io = io
        self._settings = settings
        self._say = say
        self._timed = timed
        self._resumed: StoredState | None = None
        self._at_safe_point: dict[str, Any] = {}
        self._step = self._saved_step = 0
        self._generators: dict[str, Any] = {}
        self._writer: _Writer | None = None
        self._ranks: Ranks = ALONE

    def resume(self, state: StoredState) -> None:
        """Restores the random generators of a state once training starts; Lightning loads the rest."""
        self._resumed = state
        self._saved_step = state.step

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Installs our signal handlers; restores the random generators, which the loaders have used by now."""
        self._interruption.listen()
        if trainer.world_size > 1:
            self._ranks = ProcessRanks(lockstep=False)
        if self._resumed is not None:
            path = self._resumed.folder / GENERATORS.format(trainer.global_rank)
            if path.exists():
                restore_rng(read_stored(path))
            else:
                self._say(f"rank {trainer.global_rank} is new; its random generators start anew")

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Holds signals back: from here to the next safe point, the weights belong to no finished step."""
        self._interruption.hold()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Safe point after a step; saves if a state is due.

        Raises:
            StageError: The weights or the optimizer's state are not finite; no rank wrote anything.
        """
        self._interruption.hold()
        with self._timed("state"):
            self._after_step(trainer, batch_idx + 1)
        self._interruption.release()
        self._interruption.safe_point()

    def _after_step(self, trainer: lightning.Trainer, step: int) -> None:
        """Notes the safe point after a step, and saves if a state is due."""
        self._finish_writing()
        self._step = step
        self._note_safe_point(trainer, validated=False)
        last = self._step == trainer.num_training_batches
        if last or self._step % self._settings.every_n_steps == 0:
            problem = self._not_finite(trainer)
            if problem is not None:
                where = self._store.directory
                raise StageError(f"{where}: {problem} after step {self._step}, so no state is saved; {REMEDY}")
            self._save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Safe point after validation."""
        self._note_safe_point(trainer, validated=True)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stores the small values of the last safe point in place of the present ones."""
        checkpoint.update(self._at_safe_point)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Waits for the state that is being written."""
        with self._timed("state"):
            self._finish_writing()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Saves the last safe point, if the weights have not changed since and all ranks take part."""
        changing = self._interruption.holding
        # Any other error may have occurred on one rank alone, while the others run different code.
        together = self._ranks.world_size == 1 or isinstance(exception, Interrupted)
        with self._interruption.held():
            if together:
                self._finish_writing()
                if self._at_safe_point and self._step > self._saved_step and not changing:
                    problem = self._not_finite(trainer)
                    if problem is None:
                        self._save_on_the_way_out(trainer)
                    else:
                        self._say(f"{problem} after step {self._step}, so no state is saved")
            elif self._writer is not None:
                self._writer.finish()
        if self._saved_step:
            self._say(f"the same command continues after step {self._saved_step}")

    def _save_on_the_way_out(self, trainer: lightning.Trainer) -> None:
        """Saves while an error ends the run, which is more important than a failure of this."""
        try:
            self._save(trainer)
            self._finish_writing()
        except RolloutError as error:  # rollouts that were sampled ahead are lost with their engine
            self._failed(str(error), "")

    def _not_finite(self, trainer: lightning.Trainer) -> str | None:
        """The first part of the state that is not finite on any rank; a collective."""
        return not_finite_anywhere(saved_tensors(trainer.lightning_module, trainer.optimizers), self._ranks)

    def _note_safe_point(self, trainer: lightning.Trainer, *, validated: bool) -> None:
        """Copies the small values: Lightning's loop counters, the data module's state and the random generators.

        From the counters Lightning infers where in the loop a checkpoint was taken. With the counters as they are after
        a batch, a resumed run would skip a validation that is due. So they are set to one of two positions: before the
        first batch of a validation, which a resumed run then does if it is due, or after a finished validation.
        """
        loops = trainer.fit_loop.state_dict()
        batches, validation = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
        done = int(validated)
        for part in ("total", "current"):
            batches[part]["completed"] = batches[part]["processed"]
            validation[part] = {"ready": 1, "started": 1, "processed": done, "completed": done}
        validation["is_last_batch"] = validated
        self._at_safe_point = {"loops": {"fit_loop": loops}}
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if datamodule is not None:
            self._at_safe_point[type(datamodule).__qualname__] = datamodule.state_dict()
        self._generators = rng_state()

    def _save(self, trainer: lightning.Trainer) -> None:
        """Writes the last safe point, in the background if the settings say so; a collective."""
        step, rank, folder = self._step, self._ranks.rank, self._store.partial(self._step)
        problem = self._agreed(_attempt(partial(self._store.begin, step)) if rank == 0 else None)
        if problem is None:
            trainer.save_checkpoint(folder / CHECKPOINT, weights_only=False)
            problem = self._agreed(_attempt(partial(torch.save, self._generators, folder / GENERATORS.format(rank))))
        write = self._io.take()
        if problem is not None:
            self._failed(problem)
            return
        self._saved_step = step
        facts = {"world_size": trainer.world_size, FINITE: True}
        commit = partial(self._store.commit, step, facts) if rank == 0 else None
        parts = (partial(write, folder / CHECKPOINT) if write is not None else None, commit)
        self._writer = _Writer(parts, self._settings)

    def _finish_writing(self) -> None:
        """Waits for the state that is being written; a collective, since all ranks write at the same time."""
        if self._writer is not None:
            problem, self._writer = self._agreed(self._writer.finish()), None
            if problem is not None:
                self._failed(problem)

    def _failed(self, problem: str, outlook: str = "training goes on, ") -> None:
        if self._ranks.rank == 0:
            with suppress(OSError):  # nothing can be removed from a disk that became read-only
                self._store.clear_partial()
        found = self._ranks.gather(self._store.newest_step())[0]
        self._saved_step = found or 0
        last = "there is none yet" if found is None else f"the last one is that of step {found}"
        self._say(f"the state after step {self._step} could not be saved ({problem}); {outlook}{last}")

    def _agreed(self, problem: str | None) -> str | None:
        """The first problem of any rank, on every rank."""
        return next((each for each in self._ranks.gather(problem) if each is not None), None)


class _Writer:
    """Writes one state: first this rank's part, then on rank 0 the commit that makes it a state."""

    def __init__(self, parts: Sequence[Callable[[], Any] | None], settings: StateSettings) -> None:
        self._parts = parts
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="mmrl-state") if settings.in_background else None
        if self._thread is None:
            self._run()
        else:
            self._thread.start()

    def finish(self) -> str | None:
        """Waits for the writes; returns the reason if one failed."""
        if self._thread is not None:
            self._thread.join()
        return self._problem

    def _run(self) -> None:
        for part in self._parts:
            if part is not None and self._problem is None:
                self._problem = _attempt(part)
        self._parts = ()  # frees the copy of the state


def _attempt(write: Callable[[], Any]) -> str | None:
    """Runs a write to the disk; returns the reason if it fails.

    torch.save hides the disk's error in a RuntimeError, and DCP hides the errors of all ranks in a CheckpointException.
    """
    try:
        write()
    except (OSError, RuntimeError, MemoryError, MachineError, CheckpointException) as error:
        found = refusal(error)
        return str(error).splitlines()[0] if found is None else found.problem
    return None
