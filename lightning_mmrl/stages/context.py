"""What every stage is told about itself, and the optimizer it builds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_mmrl.errors import StageError
from lightning_mmrl.types.records import Bound


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContext:
    """A running stage's name, length, seed and folder.

    `num_steps` counts optimizer steps (SFT) or iterations (RL). The stage ends before them `cooldown_steps` after the
    first validation that meets `stop_when`.
    """

    name: str
    num_steps: int
    seed: int
    directory: Path
    stop_when: Bound | None = None
    cooldown_steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """A factory from parameters to an optimizer, and the learning-rate multiplier of (step, number of steps)."""

    factory: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    schedule: Callable[[int, int], float]

    def build(
        self, module: nn.Module, context: StageContext, factor: Callable[[int], float] = lambda step: 1.0
    ) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """The optimizer over all parameters that train, and its scheduler, stepped once per step or iteration.

        `factor` multiplies the schedule after so many of the scheduler's steps.

        Raises:
            StageError: Nothing trains.
        """
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not parameters:
            raise StageError(
                f"stages.{context.name}.freeze leaves no parameter of this model to train; freeze fewer groups"
            )
        optimizer = self.factory(parameters)
        schedule, num_steps = self.schedule, context.num_steps
        return optimizer, LambdaLR(optimizer, lambda step: schedule(step, num_steps) * factor(step))


def finished_steps(trainer: lightning.Trainer) -> int:
    """Batches that a stage had finished when it was saved; 0 for one that starts. To be asked when training starts."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.completed


def log_metrics(module: lightning.LightningModule, metrics: dict[str, float], step: int) -> None:
    """Sends metrics to every logger of the trainer with the stage's own step."""
    for logger in module.loggers:
        logger.log_metrics(metrics, step)


def scalar_values(values: dict[str, Any]) -> dict[str, float]:
    """Tensors and numbers as floats."""
    return {key: float(value) for key, value in values.items()}
