"""The context of a running stage, and how its optimizer is built."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from lightning_mmrl.errors import StageError
from lightning_mmrl.models.parallelize import Sharding
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.settings.algorithm import CriticSettings, RewardSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.stages.costs import CostMeter
from lightning_mmrl.types.batches import PromptBatch
from lightning_mmrl.types.costs import StageBudget
from lightning_mmrl.types.records import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContext:
    """A running stage's name, length, seed and folder, and its ties to the run around it.

    Attributes:
        name: Name of the stage.
        settings: Configuration of the stage; `num_steps` counts optimizer steps (SFT) or iterations (RL).
        seed: Seed of all random numbers of the stage.
        directory: The stage's folder.
        ranks: The processes that run the stage together.
        sharding: How the weights are sharded over the ranks; None if each rank holds all of them.
        rank_local: Entered around work that is not synchronized across ranks. An interruption may end that work early;
            at the end of the work all ranks learn of the interruption.
        refill: Returns prompts in addition to those of the loader: each call returns this rank's share of one more
            batch.
        upcoming: Returns this rank's shares of the batches after the one in hand, if rollouts are sampled ahead.
        num_validated: Says how many samples a validation must judge.
        waited_s: Says how many seconds this rank waited for the batch in hand.
        target_tokens: Gives the tokens of a sample's target after a prompt of so many positions, or says why there are
            none.
        costs: Measures what the steps cost.
        budget: The limit of the stage's costs; None if it runs all its steps.
        say: Tells the user something.
    """

    name: str
    settings: StageSettings
    seed: int
    directory: Path
    ranks: Ranks = ALONE
    sharding: Sharding | None = None
    rank_local: Callable[[], AbstractContextManager[None]] = nullcontext
    refill: Callable[[], PromptBatch] | None = None
    upcoming: Callable[[], Sequence[PromptBatch]] | None = None
    num_validated: Callable[[], int] | None = None
    waited_s: Callable[[], float] | None = None
    target_tokens: Callable[[Sample, int], Sequence[int] | str] | None = None
    costs: CostMeter = field(default_factory=CostMeter)
    budget: StageBudget | None = None
    say: Callable[[str], None] = lambda message: None

    @property
    def rewards(self) -> RewardSettings:
        """The reward settings of the stage, or the defaults if it has none."""
        return self.settings.rewards or RewardSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """Builds an optimizer, and multiplies its learning rate by a function of step and number of steps.

    If `critic` is set, its learning rate replaces the factory's for all parameters.
    """

    factory: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    schedule: Callable[[int | float, int], float]
    critic: CriticSettings | None = None

    def build(
        self,
        module: nn.Module,
        context: StageContext,
        place: Callable[[int], int | float] = lambda step: step,
        factor: Callable[[int], float] = lambda step: 1.0,
    ) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """The optimizer over all parameters that train, and its scheduler, stepped once per step or iteration.

        The schedule is that of step `place(n)`, multiplied by `factor(n)`, where n is the number of scheduler steps so
        far.

        Raises:
            StageError: Nothing trains.
        """
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not parameters:
            raise StageError(
                f"stages.{context.name}.freeze leaves no parameter of this model to train; freeze fewer groups"
            )
        optimizer = self.factory(parameters)
        if self.critic is not None:
            for group in optimizer.param_groups:
                group["lr"] = self.critic.learning_rate
        schedule, num_steps = self.schedule, context.settings.steps
        return optimizer, LambdaLR(optimizer, lambda step: schedule(place(step), num_steps) * factor(step))


def finished_steps(trainer: lightning.Trainer) -> int:
    """Batches that a stage had finished when it was saved, 0 for a new stage; valid once training starts."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.completed


def place(module: lightning.LightningModule, policy: Policy, ranks: Ranks, sharding: Sharding | None) -> None:
    """Shards or replicates the policy across the ranks of the trainer when a module starts.

    Raises:
        StageError: Trainer and module disagree on the number of ranks, or on whether weights are sharded.
    """
    mesh, world_size = module.device_mesh, module.trainer.world_size
    if world_size != ranks.world_size or (mesh is None) != (sharding is None):
        known = "shards its weights" if sharding else "has whole weights"
        raise StageError(
            f"{type(module).__name__} expects {ranks.world_size} ranks and {known}, but its trainer runs "
            f"{world_size} ranks with {type(module.trainer.strategy).__name__}; build both from the same settings"
        )
    if mesh is not None and sharding is not None:
        sharding.apply(policy, mesh["data_parallel"], ranks)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scales all gradients to a joint norm of at most `max_norm`, sharded or not; returns the norm before."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def scalar_values(values: dict[str, Any]) -> dict[str, float]:
    """Tensors and numbers as floats; the host waits for a device once."""
    tensors = [value.detach().double() for value in values.values() if isinstance(value, Tensor)]
    device = next((each.device for each in tensors if each.device.type != "cpu"), torch.device("cpu"))
    read = iter(torch.stack([each.to(device, non_blocking=True) for each in tensors]).tolist() if tensors else ())
    return {key: next(read) if isinstance(value, Tensor) else float(value) for key, value in values.items()}
