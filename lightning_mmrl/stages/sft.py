"""Supervised fine-tuning: the loss is on assistant tokens only."""

import torch
from torch import Tensor

from lightning_mmrl.algorithms.losses.cross_entropy import CrossEntropy
from lightning_mmrl.models.integrity import check_targets
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.ops.masked import masked_sum
from lightning_mmrl.protocols.tensors import TargetLoss
from lightning_mmrl.stages.accumulating import AccumulatingModule
from lightning_mmrl.stages.answers import AnswerEvaluator
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.types.batches import ScoringBatch, SftBatch


class SFTModule(AccumulatingModule):
    """Learns targets: loss = sum of the losses of their tokens / number of target tokens.

    Sum and number are taken over all microbatches and ranks of an optimizer step, so that neither loss nor gradient
    depends on the split. Targets of one prompt share it, and its media.

    Args:
        policy: The model to train.
        optimizer: Optimizer and schedule.
        context: The stage's name, length, seed and folder.
        evaluator: Judges greedy answers on the validation split, if there is one.
        loss: The loss of each token; None: cross-entropy.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        optimizer: OptimizerSettings,
        context: StageContext,
        evaluator: AnswerEvaluator | None = None,
        loss: TargetLoss | None = None,
    ) -> None:
        super().__init__(policy, optimizer=optimizer, context=context, evaluator=evaluator)
        self._loss = loss or CrossEntropy()

    def training_step(self, batch: SftBatch, batch_idx: int) -> Tensor:
        """One optimizer step over one batch of targets; returns the loss of its last microbatch, with a graph."""
        check_targets(batch, self.policy.media.backbone.placeholder_ids)
        self.policy.zero_grad()
        num_tokens = self._ranks.sum(batch.completion_mask.sum()).clamp(min=1)

        def loss_of(part: ScoringBatch, rows: Tensor | None) -> Tensor:
            mask = part.completion_mask if rows is not None else torch.zeros_like(part.completion_mask)
            return masked_sum(self._loss(self.policy(part).logprobs), mask) / num_tokens

        loss = self.add_up(batch.scoring, loss_of, batch.samples, batch_idx + 1)
        self.report_step({})
        return loss
