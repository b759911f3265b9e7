"""The process group of a whole run: rank 0 leads, and the other ranks wait for its commands."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from lightning_mmrl.errors import StageError
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.settings.stage import TrainerSettings
from lightning_mmrl.training.interruption import Interrupted, Interruption
from lightning_mmrl.training.ranks import ProcessRanks

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""Maximum wait of the ranks for rank 0, which may be generating or decoding a dataset, or downloading a model."""


class RankGroup:
    """The ranks of a run; a run of one process is a group of one.

    Args:
        interruption: Signals that end the run; the ranks agree on them.

    Attributes:
        rank: Number of this process.
        world_size: Number of processes.
        ranks: The processes, for code that must agree with the other ranks.
    """

    def __init__(self, interruption: Interruption | None = None) -> None:
        self.interruption = interruption or Interruption()
        joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if joined else 0
        self.world_size = dist.get_world_size() if joined else 1
        self.ranks: Ranks = ProcessRanks(lockstep=False) if self.world_size > 1 else ALONE
        self._patient: dist.ProcessGroup | None = None
        if self.world_size > 1:
            self._patient = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=PATIENCE))

    @property
    def leads(self) -> bool:
        """True on rank 0: only this rank tracks, prints and writes the manifest."""
        return self.rank == 0

    def broadcast(self, item: T) -> T:
        """Returns the item of rank 0 on every rank, however long rank 0 takes; the item is pickled."""
        if self._patient is None:
            return item
        items = [item]
        dist.broadcast_object_list(items, src=0, group=self._patient)
        return items[0]

    @contextmanager
    def first(self) -> Iterator[None]:
        """Rank 0 runs the block before the other ranks, so that they find the files that it wrote.

        Raises:
            Interrupted: Rank 0 failed or was interrupted in the block, and a signal asked this rank to end as well.
            StageError: Rank 0 failed in the block.
        """
        if not self.leads:
            problem = self.broadcast("")
            if problem:
                if self.interruption.pending is not None:
                    raise Interrupted(self.interruption.pending)
                raise StageError(f"rank {self.rank} ends because rank 0 failed: {problem}")
            yield
            return
        try:
            with self.interruption.together(ALONE):
                yield
        except BaseException as error:
            self.broadcast(repr(error))
            raise
        self.broadcast("")


def cluster_environment(settings: TrainerSettings) -> ClusterEnvironment:
    """The source of this process's rank: torchrun, SLURM, or none for a single process.

    The run handles SLURM's signals itself; Lightning would requeue the job.
    """
    if settings.world_size == 1:
        return LightningEnvironment()
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False)


@contextmanager
def joined(settings: TrainerSettings, interruption: Interruption) -> Iterator[RankGroup]:
    """Joins the processes that torchrun or SLURM started, and leaves them at the end.

    Args:
        settings: Settings of the run; one device without sharding needs no group.
        interruption: See `RankGroup`.

    Raises:
        StageError: Another rank is gone.
    """
    if settings.world_size == 1 and not settings.shards:
        yield RankGroup(interruption)
        return
    environment = cluster_environment(settings)
    on_cuda = settings.accelerator != "cpu" and torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(environment.local_rank())
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    dist.init_process_group(
        # Host data go over gloo: a rank that waits for another must not keep its GPU busy.
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
        rank=environment.global_rank(),
        world_size=settings.world_size,
    )
    group = RankGroup(interruption)
    try:
        yield group
    except RuntimeError as error:
        # Errors of gloo cannot be told from others by their type.
        if isinstance(error, dist.DistError) or "/gloo/" in str(error):
            raise StageError(
                f"rank {group.rank} ends because another one is gone; that one's message says why"
            ) from error
        raise
    dist.destroy_process_group()  # not after an error: a waiting rank must notice that this one is gone
