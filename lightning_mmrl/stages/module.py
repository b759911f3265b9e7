"""What the LightningModule of every training stage does: place, validate, report, end and continue."""

from collections.abc import Mapping
from typing import Any

import lightning

from lightning_mmrl.models.policy import Policy
from lightning_mmrl.stages.answers import Examiner, Validation, headline
from lightning_mmrl.stages.context import OptimizerSettings, StageContext, finished_steps, log_metrics, place
from lightning_mmrl.stages.ending import Ending
from lightning_mmrl.types.batches import PromptBatch


class StageModule(lightning.LightningModule):
    """A stage around the step that a subclass takes.

    A subclass adds `training_step` and `configure_optimizers`. One batch is one step of the stage: an optimizer step
    or an iteration. What a subclass knows beside weights, counters and this, it adds in `stage_state` and takes up in
    `load_stage_state`.

    Args:
        policy: The model to train.
        optimizer: Optimizer and schedule.
        context: The stage's name, length, seed and folder.
        examiner: Judges greedy answers on the validation split, if there is one.
    """

    def __init__(
        self, policy: Policy, *, optimizer: OptimizerSettings, context: StageContext, examiner: Examiner | None = None
    ) -> None:
        super().__init__()
        self.policy = policy
        self.latest: dict[str, float] = {}
        self._optimizer = optimizer
        self._context = context
        self._ending = Ending(context.stop_when, context.cooldown_steps)
        self._ranks = context.ranks
        self._validation = Validation(examiner, context.ranks, context.num_validated) if examiner is not None else None

    def configure_model(self) -> None:
        """Spreads the policy over the ranks."""
        place(self, self.policy, self._context.ranks, self._context.sharding)

    def stage_state(self) -> dict[str, Any]:
        """What the stage knows beside weights and counters: tensors and primitives."""
        return {"latest": dict(self.latest), "ending": self._ending.state_dict()}

    def load_stage_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `stage_state` gave."""
        self.latest = dict(state["latest"])
        self._ending.load_state_dict(state["ending"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state of the stage."""
        checkpoint["stage"] = self.stage_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up the state of the stage."""
        self.load_stage_state(checkpoint["stage"])

    def on_train_start(self) -> None:
        """Takes up a stage that was saved: it may be at its end."""
        self._ending.apply(self.trainer, finished_steps(self.trainer))

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        """Ends the stage when its time has come."""
        self._ending.apply(self.trainer, batch_idx + 1)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Judges greedy answers."""
        if self._validation is not None:
            self._validation.step(batch)

    def on_validation_epoch_end(self) -> None:
        """Reports the validation metrics at the step before it."""
        if self._validation is not None:
            values = headline(self._validation.finish())
            metrics = {f"validation/{key}": value for key, value in values.items()}
            # Not `global_step`: an iteration takes any number of optimizer steps.
            step = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            self._report(metrics, step)
            self._ending.validated(metrics, step=step)
            self._ending.apply(self.trainer, step)

    def _report(self, values: dict[str, float], step: int) -> None:
        self.latest |= values
        log_metrics(self, {f"{self._context.name}/{key}": value for key, value in values.items()}, step)
