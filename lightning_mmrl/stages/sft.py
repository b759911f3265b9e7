"""Supervised fine-tuning: the loss is on assistant tokens only."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.plugins.precision.amp import MixedPrecision
from lightning.pytorch.utilities.types import LRSchedulerTypeUnion, OptimizerLRScheduler
from torch import Tensor

from lightning_mmrl.models.integrity import check_targets
from lightning_mmrl.ops.masked import masked_sum
from lightning_mmrl.settings.sft import microbatches_of
from lightning_mmrl.stages.context import clip_gradients
from lightning_mmrl.stages.microbatches import budget_of, microbatches
from lightning_mmrl.stages.module import StageModule
from lightning_mmrl.types.batches import SftBatch
from lightning_mmrl.types.records import Sample

SCALINGS = 16
"""Steps in a row that a loss scaler may skip itself: as many halvings bring the usual first scale, 2**16, to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """The current step: its number from 1, the loss over all ranks, and the samples of this rank's targets."""

    number: int
    loss: float
    samples: tuple[Sample, ...]


class SFTModule(StageModule):
    """Maximises the log-likelihood of targets: loss = -sum of their token log-probs / number of target tokens.

    Sum and number are taken over all microbatches and ranks of an optimizer step, so that neither loss nor gradient
    depends on the split. Targets of one prompt share it, and its media. A step whose loss or gradient is not finite
    moves neither weights nor optimizer nor schedule. Under a loss scaler (precision 16-mixed) a gradient that is not
    finite means that the scale is too large, and the scaler skips the step itself. Such a step moves neither weights
    nor optimizer, and counts as skipped only after `SCALINGS` such steps in a row.

    Args:
        policy: The model to train.
        optimizer: Optimizer and schedule.
        context: The stage's name, length, seed and folder.
        evaluator: Judges greedy answers on the validation split, if there is one.
    """

    _complete = True
    """Whether the next backward pass is the last one of its step."""

    _skips = False
    """Whether the last step was skipped."""

    _scalings = 0
    """Steps in a row whose scaled gradient was not finite."""

    def training_step(self, batch: SftBatch, batch_idx: int) -> Tensor:
        """One optimizer step over one batch of targets; returns the loss of its last microbatch, with a graph."""
        check_targets(batch, self.policy.media.backbone.placeholder_ids)
        self.policy.zero_grad()
        num_tokens = self._ranks.sum(batch.completion_mask.sum()).clamp(min=1)
        live, budget = range(len(batch.prompts.samples)), budget_of(microbatches_of(self._context.settings))
        losses: list[Tensor] = []
        for part, rows in microbatches(batch.scoring, live, budget=budget, ranks=self._ranks):
            if losses:
                self._accumulate(losses[-1])
                losses[-1] = losses[-1].detach()
            mask = part.completion_mask if rows is not None else torch.zeros_like(part.completion_mask)
            losses.append(-(masked_sum(self.policy(part).logprobs, mask) / num_tokens))
        total = self._ranks.sum(torch.stack([loss.detach() for loss in losses]).sum()).item()
        samples = {sample.id: sample for sample in batch.samples}
        self._step = _Step(number=batch_idx + 1, loss=total, samples=tuple(samples.values()))
        reported = {"train/loss": total} if math.isfinite(total) else {}
        reported |= {"train/learning_rate": self._learning_rate()} | self._context.costs
        self._report(reported, batch_idx + 1)
        return losses[-1]

    def _accumulate(self, loss: Tensor) -> None:
        """Adds the gradient of a microbatch that another one follows; Lightning does so for the last one."""
        self._complete = False
        self.trainer.strategy.backward(loss, None)
        self._complete = True

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Does nothing: the step is under way when Lightning asks for it, and has gradients of its own."""

    def on_after_backward(self) -> None:
        """Adds up the gradients of all ranks, once those of all microbatches are complete."""
        if self._complete:
            self._ranks.sum_gradients(self.policy.parameters())

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Scales gradients down, or removes them if the step is skipped: the optimizer then changes no parameter."""
        max_norm = math.inf if gradient_clip_val is None else gradient_clip_val
        norm = clip_gradients(self.policy.parameters(), max_norm)
        step, plugin = self._step, self.trainer.precision_plugin
        scaled = isinstance(plugin, MixedPrecision) and plugin.scaler is not None and math.isfinite(step.loss)
        self._scalings = self._scalings + 1 if scaled and not math.isfinite(norm) else 0
        numbers = {"loss": [step.loss], "gradient norm": [] if 0 < self._scalings <= SCALINGS else [norm]}
        self._skips = self._bad_steps.found(step.number, numbers, step.samples)  # with the same norm on all ranks
        if self._skips:
            self._report(self._bad_steps.reported(step.number), step.number)
        if self._skips or not math.isfinite(norm):
            optimizer.zero_grad()

    def stage_state(self) -> dict[str, Any]:
        """The state that every stage has, and how often in a row the loss scaler skipped a step."""
        return super().stage_state() | {"scalings": self._scalings}

    def load_stage_state(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `stage_state` returned."""
        super().load_stage_state(state)
        self._scalings = state.get("scalings", 0)

    def lr_scheduler_step(self, scheduler: LRSchedulerTypeUnion, metric: Any | None) -> None:
        """Moves on to the next learning rate, except after a skipped step."""
        if not self._skips:
            super().lr_scheduler_step(scheduler, metric)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and its schedule, stepped with every optimizer step that is not skipped."""
        # The cooldown counts skipped steps too, unlike the schedule: otherwise it would not reach zero.
        optimizer, scheduler = self._optimizer.build(
            self.policy, self._context, lambda step: self._ending.factor(step + len(self._bad_steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _learning_rate(self) -> float:
        optimizer = self.optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer.param_groups[0]["lr"]
