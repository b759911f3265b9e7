"""The LightningModule shared by all training stages: placement, validation, reports, ending and resuming."""

from collections.abc import Mapping
from typing import Any, ClassVar

import lightning

from lightning_mmrl.errors import StageError
from lightning_mmrl.models.digest import weight_digest
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.stages.answers import AnswerEvaluator, Validation
from lightning_mmrl.stages.bad_steps import BadSteps
from lightning_mmrl.stages.context import OptimizerSettings, StageContext, finished_steps, place
from lightning_mmrl.stages.costs import timed
from lightning_mmrl.stages.ending import Ending, resume_at_end
from lightning_mmrl.types.batches import PromptBatch
from lightning_mmrl.types.records import Training


class StageModule(lightning.LightningModule):
    """A training stage without its step; a subclass adds `training_step` and `configure_optimizers`.

    One batch is one step of the stage: an optimizer step or an iteration. A subclass with further state adds it in
    `stage_state` and restores it in `load_stage_state`.

    Args:
        policy: The model to train.
        optimizer: Optimizer and schedule.
        context: The stage's name, length, seed and folder.
        evaluator: Judges greedy answers on the validation split, if there is one.
    """

    idle_causes: ClassVar[str] = "a learning rate of 0, or steps too small for the type of the weights"
    """Likely causes if a stage changed no weight."""

    def __init__(
        self,
        policy: Policy,
        *,
        optimizer: OptimizerSettings,
        context: StageContext,
        evaluator: AnswerEvaluator | None = None,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.latest: dict[str, float] = {}
        self.headline: dict[str, str] = {}
        """Maps the key of the validation's headline metric to its name for humans."""
        if evaluator is not None:
            self.headline[f"validation/{evaluator.task.headline}"] = f"val {evaluator.task.headline_title}"
        self._optimizer = optimizer
        self._context = context
        self.ending = Ending(context.settings, context.budget, context.costs)
        self.costs = context.costs
        self._ranks = timed(context.ranks, self.costs)
        self._bad_steps = BadSteps(context, lambda: dict(self.named_parameters()), self.ending.expected_steps)
        self._num_steps = 0
        self._start_digest: str | None = None
        self._validation = (
            Validation(evaluator, context.ranks, context.num_validated) if evaluator is not None else None
        )

    def configure_model(self) -> None:
        """Spreads the policy over the ranks."""
        place(self, self.policy, self._context.ranks, self._context.sharding)

    def stage_state(self) -> dict[str, Any]:
        """The stage's state besides weights, optimizers and Lightning's counters: tensors and primitives."""
        return {
            "latest": dict(self.latest),
            "ending": self.ending.state_dict(),
            "bad_steps": self._bad_steps.state_dict(),
            "start_digest": self._start_digest,
            "costs": self.costs.state_dict(),
        }

    def load_stage_state(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `stage_state` returned."""
        self.latest = dict(state["latest"])
        self.ending.load_state_dict(state["ending"])
        if "costs" in state:  # without the key, the totals begin anew
            self.costs.load_state_dict(state["costs"])
        # A state without the keys has no skipped steps, and no digest of the weights that the stage started from.
        self._bad_steps.load_state_dict(state.get("bad_steps", ()))
        self._start_digest = state.get("start_digest")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state of the stage."""
        checkpoint["stage"] = self.stage_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the state of the stage."""
        self.load_stage_state(checkpoint["stage"])

    def on_train_start(self) -> None:
        """Starts the stage, or continues a saved one, which may be at its end already."""
        self._num_steps = finished_steps(self.trainer)
        if not self._num_steps:
            self._start_digest = weight_digest(self.policy, self._ranks)
        self.costs.start(self.device, self._ranks, self._num_steps)
        if not (self.ending.ended(self._num_steps) and resume_at_end(self.trainer)):
            self.ending.apply(self.trainer, self._num_steps)

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Counts the wait for the batch, which was in no phase."""
        if self._context.waited_s is not None:
            self.costs.moved("data", self._context.waited_s())

    def on_train_end(self) -> None:
        """Adds the time since the last step to the costs."""
        self.costs.finish()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps in automatic optimization, and frees the gradients at once: a validation may come next."""
        super().optimizer_step(*args, **kwargs)
        self.zero_grad()

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        """Counts the step, and ends the stage if it was the last one."""
        self._num_steps = batch_idx + 1
        self.ending.apply(self.trainer, self._num_steps)

    def outcome(self) -> Training:
        """The stage's outcome; a collective, called when the trainer is done.

        Raises:
            StageError: The trainer ended before the last step, and no validation had met `stop_when`; or the last steps
                were skipped.
        """
        context, num_steps = self._context, self._num_steps
        if not self.ending.complete(num_steps):
            raise StageError(
                f"stages.{context.name} ended after {num_steps} of {self.ending.expected_steps(num_steps)} steps, and "
                "nothing had asked for it: its data came to an end; look at the messages above for media that could "
                "not be read, and run the same command again"
            )
        self._bad_steps.refuse_end(num_steps)
        changed = None
        if self._start_digest is not None:
            changed = self._start_digest != weight_digest(self.policy, self._ranks)
        if changed is False:
            context.say(f"no weight changed in {num_steps} steps; the likely causes are {self.idle_causes}")
        return Training(
            metrics=dict(self.latest),
            num_steps=num_steps,
            num_skipped=self._bad_steps.number(num_steps),
            changed=changed,
            costs=self.costs.total,
        )

    def on_validation_start(self) -> None:
        """Begins the time of the validation."""
        self.costs.begin("validation")

    def on_validation_end(self) -> None:
        """Ends the time of the validation, whose passes are not counted."""
        self.policy.media.take_rows()
        self.costs.end()

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Judges greedy answers."""
        if self._validation is not None:
            self._validation.step(batch)

    def on_validation_epoch_end(self) -> None:
        """Reports the validation metrics at the step before the validation."""
        if self._validation is not None:
            metrics = {f"validation/{key}": value for key, value in self._validation.finish().items()}
            # Not `global_step`: an iteration takes any number of optimizer steps.
            step = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            self._report(metrics, step)
            self.ending.validated(metrics, step=step)
            self.ending.apply(self.trainer, step)

    def _place(self, step: int) -> int | float:
        """Where the schedules are in a step, counted from 1: how many of their steps lie before it."""
        return self.ending.place(step - 1)

    def _report(self, values: dict[str, float], step: int) -> None:
        self.latest |= values
        metrics = {f"{self._context.name}/{key}": value for key, value in values.items()}
        for logger in self.loggers if self.global_rank == 0 else ():
            logger.log_metrics(metrics, step)
