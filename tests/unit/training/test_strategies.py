"""From settings to Lightning's strategies; contradictions are refused with the key to change."""

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_mmrl.models.parallelize import Sharding
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.settings.stage import TrainerSettings
from lightning_mmrl.training.ranks import ProcessRanks, _buckets
from lightning_mmrl.training.strategies import (
    ReplicaStrategy,
    build_strategy,
    lightning_precision,
    ranks_of,
    sharding_of,
)


def test_one_device_is_lightnings_own_strategy_and_alone():
    settings = TrainerSettings()
    assert build_strategy(settings) == "auto"
    assert ranks_of(settings) is ALONE
    assert sharding_of(settings) is None


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_several_devices_are_replicas_unless_weights_are_sharded(strategy):
    settings = TrainerSettings(devices=2, num_nodes=2, strategy=strategy)
    assert isinstance(build_strategy(settings), ReplicaStrategy)
    assert ranks_of(settings) == ProcessRanks(lockstep=False)
    assert settings.world_size == 4


def test_sharding_names_both_sizes_of_the_mesh():
    """Lightning's defaults would shard over nodes alone: on one node, not at all."""
    settings = TrainerSettings(devices=2, num_nodes=3, strategy="fsdp2")
    strategy = build_strategy(settings)
    assert isinstance(strategy, ModelParallelStrategy)
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (6, 1)
    assert ranks_of(settings) == ProcessRanks(lockstep=True)


def test_mixed_precision_is_left_to_the_sharding():
    settings = TrainerSettings(strategy="fsdp2", precision="bf16-mixed")
    assert lightning_precision(settings) == "32-true"
    assert sharding_of(settings) == Sharding(
        compute_dtype=torch.bfloat16, reduce_dtype=torch.float32, settings=settings
    )
    assert lightning_precision(TrainerSettings(precision="bf16-mixed")) == "bf16-mixed"


def test_gradients_are_sent_in_buckets_of_one_type(monkeypatch):
    monkeypatch.setattr("lightning_mmrl.training.ranks.BUCKET_ELEMENTS", 10)
    gradients = [torch.zeros(4), torch.zeros(6), torch.zeros(1), torch.zeros(25), torch.zeros(2, dtype=torch.float64)]
    sizes = [[each.numel() for each in bucket] for bucket in _buckets(gradients)]
    assert sizes == [[4, 6], [1], [25], [2]]
