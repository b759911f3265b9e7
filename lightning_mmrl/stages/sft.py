"""Supervised fine-tuning: the loss is on assistant tokens only."""

from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lightning_mmrl.models.integrity import check_targets
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.ops.masked import masked_sum
from lightning_mmrl.stages.answers import Examiner, Validation, headline
from lightning_mmrl.stages.context import OptimizerSettings, StageContext, finished_steps, log_metrics, place
from lightning_mmrl.stages.ending import Ending
from lightning_mmrl.types.batches import PromptBatch, ScoringBatch, SftBatch


class SFTModule(lightning.LightningModule):
    """Maximises the log-likelihood of targets: loss = -sum of their token log-probs / number of target tokens.

    Both are counted over all ranks of an optimizer step.

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
        self._validation = Validation(examiner, context.ranks) if examiner is not None else None

    def configure_model(self) -> None:
        """Spreads the policy over the ranks."""
        place(self, self.policy, self._context.ranks, self._context.sharding)

    def training_step(self, batch: SftBatch, batch_idx: int) -> Tensor:
        """One optimizer step over one batch of targets; the result is this rank's part of the loss."""
        check_targets(batch, self.policy.media.backbone.placeholder_ids)
        scoring = ScoringBatch(
            prompts=batch.prompts,
            completion_ids=batch.completion_ids,
            completion_mask=batch.completion_mask,
            group_size=1,
        )
        output = self.policy(scoring)
        num_tokens = self._ranks.sum(batch.completion_mask.sum())
        loss = -(masked_sum(output.logprobs, batch.completion_mask) / num_tokens.clamp(min=1))
        total = self._ranks.sum(loss.detach()).item()
        self._report({"train/loss": total, "train/learning_rate": self._learning_rate()}, batch_idx + 1)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the stage knows beside weights and counters."""
        checkpoint["stage"] = {"latest": dict(self.latest), "ending": self._ending.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up what `on_save_checkpoint` added."""
        self.latest = dict(checkpoint["stage"]["latest"])
        self._ending.load_state_dict(checkpoint["stage"]["ending"])

    def on_train_start(self) -> None:
        """Takes up a stage that was saved: it may be at its end."""
        self._ending.apply(self.trainer, finished_steps(self.trainer))

    def on_after_backward(self) -> None:
        """Adds up the gradients of all ranks."""
        self._ranks.sum_gradients(self.policy.parameters())

    def on_train_batch_end(self, outputs: object, batch: SftBatch, batch_idx: int) -> None:
        """Ends the stage when its time has come."""
        self._ending.apply(self.trainer, batch_idx + 1)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Judges greedy answers."""
        if self._validation is not None:
            self._validation.step(batch)

    def on_validation_epoch_end(self) -> None:
        """Reports the validation metrics."""
        if self._validation is not None:
            values = headline(self._validation.finish())
            metrics = {f"validation/{key}": value for key, value in values.items()}
            step = self.trainer.global_step
            self._report(metrics, step)
            self._ending.validated(metrics, step=step)
            self._ending.apply(self.trainer, step)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, its schedule stepped every optimizer step."""
        optimizer, scheduler = self._optimizer.build(self.policy, self._context, self._ending.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _report(self, values: dict[str, float], step: int) -> None:
        self.latest |= values
        log_metrics(self, {f"{self._context.name}/{key}": value for key, value in values.items()}, step)

    def _learning_rate(self) -> float:
        optimizer = self.optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer.param_groups[0]["lr"]
