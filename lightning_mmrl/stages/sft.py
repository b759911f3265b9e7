"""Supervised fine-tuning: the loss is on assistant tokens only."""

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lightning_mmrl.models.integrity import check_targets
from lightning_mmrl.ops.masked import masked_sum
from lightning_mmrl.stages.module import StageModule
from lightning_mmrl.types.batches import ScoringBatch, SftBatch


class SFTModule(StageModule):
    """Maximises the log-likelihood of targets: loss = -sum of their token log-probs / number of target tokens.

    Both are counted over all ranks of an optimizer step.

    Args:
        policy: The model to train.
        optimizer: Optimizer and schedule.
        context: The stage's name, length, seed and folder.
        examiner: Judges greedy answers on the validation split, if there is one.
    """

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

    def on_after_backward(self) -> None:
        """Adds up the gradients of all ranks."""
        self._ranks.sum_gradients(self.policy.parameters())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, its schedule stepped every optimizer step."""
        optimizer, scheduler = self._optimizer.build(self.policy, self._context, self._ending.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _learning_rate(self) -> float:
        optimizer = self.optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer.param_groups[0]["lr"]
