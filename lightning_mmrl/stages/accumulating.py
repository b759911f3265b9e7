"""The LightningModule shared by stages of automatic optimization: a step adds up the gradients of microbatches."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Int
from lightning.pytorch.plugins.precision.amp import MixedPrecision
from lightning.pytorch.utilities.types import LRSchedulerTypeUnion, OptimizerLRScheduler
from torch import Tensor

from lightning_mmrl.errors import StageError
from lightning_mmrl.settings.sft import microbatches_of
from lightning_mmrl.stages.context import clip_gradients
from lightning_mmrl.stages.microbatches import budget_of, microbatches
from lightning_mmrl.stages.module import StageModule
from lightning_mmrl.types.batches import ScoringBatch
from lightning_mmrl.types.costs import OPTIMIZE, UPDATE
from lightning_mmrl.types.records import Sample

LossOf = Callable[[ScoringBatch, Int[Tensor, " n"] | None], Tensor]
"""Gives the share of a microbatch in the loss of its step, with a graph, from the microbatch and its rows of the batch;
None in place of the rows for a dummy batch, in which nothing counts."""

SCALINGS = 16
"""Steps in a row that a loss scaler may skip itself: as many halvings bring the usual first scale, 2**16, to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """The current step: its number from 1, the loss over all ranks, and the samples of this rank's targets."""

    number: int
    loss: float
    samples: tuple[Sample, ...]


class AccumulatingModule(StageModule):
    """A training stage whose step adds up the gradients of its microbatches, and of all ranks.

    A step whose loss or gradient is not finite moves neither weights nor optimizer nor schedule. Under a loss scaler
    (precision 16-mixed) a gradient that is not finite means that the scale is too large, and the scaler skips the step
    itself. Such a step moves neither weights nor optimizer, and counts as skipped only after `SCALINGS` such steps in a
    row.

    A subclass adds `training_step`, which calls `add_up`.
    """

    _complete = True
    """Whether the next backward pass is the last one of its step."""

    _skips = False
    """Whether the last step was skipped."""

    _scalings = 0
    """Steps in a row whose scaled gradient was not finite."""

    _noted: Mapping[str, float] = MappingProxyType({})
    """The metrics of the current step that are known before its gradient."""

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Counts the wait for the batch, and begins the phase that lasts until the optimizer's step."""
        super().on_train_batch_start(batch, batch_idx)
        self.costs.begin(OPTIMIZE)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Computes loss and gradient, steps, and ends the phase; the step's own time is part of the next record."""
        super().optimizer_step(*args, **kwargs)
        self.costs.end()

    def add_up(
        self, batch: ScoringBatch, loss_of: LossOf, samples: Sequence[Sample], number: int, *, whole: bool = False
    ) -> Tensor:
        """Adds up gradients over the microbatches of a step; returns the loss of the last one, with a graph.

        Args:
            batch: This rank's part of the step.
            loss_of: Gives the loss of each microbatch; the losses of all microbatches and ranks add up.
            samples: The samples of this rank.
            number: The number of the step, from 1.
            whole: Whether the completions of a prompt must be in one microbatch.
        """
        live, budget = range(len(batch.prompts.samples)), budget_of(microbatches_of(self._context.settings))
        losses: list[Tensor] = []
        count = self.costs.counting(UPDATE)
        for part, rows in microbatches(batch, live, budget=budget, ranks=self._ranks, whole=whole, count=count):
            if losses:
                self._accumulate(losses[-1])
                losses[-1] = losses[-1].detach()
            losses.append(loss_of(part, rows))
        self.costs.take_counters(self.policy, updates=True)
        total = self._ranks.sum(torch.stack([loss.detach() for loss in losses]).sum()).item()
        own = {sample.id: sample for sample in samples}
        self._step = _Step(number=number, loss=total, samples=tuple(own.values()))
        return losses[-1]

    def report_step(self, values: Mapping[str, float]) -> None:
        """Notes the loss of the step, the learning rate and further values, if they are finite.

        They are reported with the costs of the step, once its gradient is known.
        """
        found = {"train/loss": self._step.loss} | dict(values)
        self._noted = {name: value for name, value in found.items() if math.isfinite(value)}
        self._noted["train/learning_rate"] = self._learning_rate()

    def on_step_taken(self) -> None:
        """Called when the gradient of a step is complete and the step moves the weights."""

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
        try:
            self._skips = self._bad_steps.found(step.number, numbers, step.samples)  # with the same norm on all ranks
        except StageError:
            self._report(dict(self._noted), step.number)  # what is known of the step that ends the run
            raise
        skipped = self._bad_steps.reported(step.number) if self._skips else {}
        self._report({**self._noted, **self.costs.close(), **skipped}, step.number)
        if self._skips or not math.isfinite(norm):
            optimizer.zero_grad()
        else:
            self.on_step_taken()

    def stage_state(self) -> dict[str, Any]:
        """The state that every stage has, and how often in a row the loss scaler skipped a step."""
        return super().stage_state() | {"scalings": self._scalings}

    def load_stage_state(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `stage_state` returned."""
        super().load_stage_state(state)
        self._scalings = state.get("scalings", 0)

    def lr_scheduler_step(self, scheduler: LRSchedulerTypeUnion, metric: Any | None) -> None:
        """Moves on to the next learning rate, except after a skipped step; what such a step spent counts."""
        if not self._skips or self.ending.spends:
            super().lr_scheduler_step(scheduler, metric)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and its schedule, stepped with every optimizer step that is not skipped."""
        # The cooldown counts skipped steps too, unlike the schedule: otherwise it would not reach zero.
        optimizer, scheduler = self._optimizer.build(
            self.policy,
            self._context,
            self.ending.place,
            lambda step: self.ending.factor(step + len(self._bad_steps)),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _learning_rate(self) -> float:
        optimizer = self.optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer.param_groups[0]["lr"]
