"""Trainer settings, and the strategies that run a stage on one or many devices.

- one device: Lightning's own strategy;
- `ddp`: every rank has all weights, and gradients are summed once per optimizer step;
- `fsdp2`: weights, gradients and optimizer state are sharded (`models.parallelize`).

torchrun, SLURM or Lightning itself starts the processes, on one node or several; Lightning's documentation lists their
environment variables. On a CPU the processes communicate over gloo.
"""

from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.optim import Optimizer

from lightning_mmrl.models.parallelize import Sharding
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.settings.stage import TrainerSettings
from lightning_mmrl.training.checkpoint_io import SnapshotIO
from lightning_mmrl.training.ranks import ProcessRanks
from lightning_mmrl.training.shards import load_shards, load_whole, named_state, write_shards
from lightning_mmrl.training.stored import read_stored

FSDP2_PRECISIONS: dict[str, dict[str, torch.dtype]] = {
    "32-true": {},
    "64-true": {},
    "bf16-mixed": {"compute_dtype": torch.bfloat16, "reduce_dtype": torch.float32},
}
"""Arguments of `Sharding` for each precision.

Under "bf16-mixed" weights that train are stored in float32; all weights are gathered in bfloat16, and gradients are
summed in float32.
"""


class ReplicaStrategy(DDPStrategy):
    """DDP without torch's wrapper: replicas start from the weights of rank 0, and stages sum their gradients.

    torch's wrapper reduces gradients within one prepared backward pass. An optimizer step here has several: one for
    each microbatch, then one through the towers. The parameters that they reach differ between ranks. One sum after
    all backward passes is exact in every case, and sends no more bytes than a single reduction.
    """

    def configure_ddp(self) -> None:
        """Copies the weights of rank 0 to this rank; the module stays unwrapped."""
        assert self.model is not None
        _sync_module_states(self.model)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 that saves by copying its shards to the host; a thread may write the copy while training goes on."""

    def setup_environment(self) -> None:
        """Joins the processes, and makes a separate gloo group in which the writing threads communicate."""
        super().setup_environment()
        self._writers = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """This rank's shards of the optimizer state, by parameter name."""
        return named_state(self._module, optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Copies this rank's shards to the host."""
        assert isinstance(self.checkpoint_io, SnapshotIO)
        self.checkpoint_io.save_with(write_shards, checkpoint, self._writers)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads shards, or this rank's parts of a whole checkpoint, into model and optimizers; returns the rest."""
        path = Path(checkpoint_path)
        if path.is_dir():
            return load_shards(path, self._module, self.optimizers)
        return load_whole(read_stored(path, mmap=True), self._module, self.optimizers)

    @property
    def _module(self) -> nn.Module:
        assert self.model is not None
        return self.model


def lightning_precision(settings: TrainerSettings) -> str:
    """The precision for the Trainer, which need not cast sharded weights: they are cast as they are gathered."""
    return "32-true" if settings.shards and settings.precision == "bf16-mixed" else settings.precision


def ranks_of(settings: TrainerSettings) -> Ranks:
    """The processes of the job, as a stage sees them."""
    if settings.world_size == 1 and not settings.shards:
        return ALONE
    return ProcessRanks(lockstep=settings.shards)


def sharding_of(settings: TrainerSettings) -> Sharding | None:
    """How weights are sharded across the ranks, or None if each rank has all of them."""
    if not settings.shards:
        return None
    return Sharding(**FSDP2_PRECISIONS[settings.precision], settings=settings)


def build_strategy(settings: TrainerSettings) -> Strategy | str:
    """The Lightning strategy for the settings."""
    if settings.shards:
        return ShardedStrategy(data_parallel_size=settings.world_size, tensor_parallel_size=1)
    return ReplicaStrategy() if settings.world_size > 1 or settings.strategy == "ddp" else "auto"
