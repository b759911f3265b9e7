"""From settings to Lightning's strategies; contradictions are refused with the key to change."""

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.models.parallelize import Sharding
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.training.ranks import ProcessRanks, _buckets
from lightning_mmrl.training.strategies import ReplicaStrategy, TrainerSettings, build_strategy


def test_one_device_is_lightnings_own_strategy_and_alone():
    settings = TrainerSettings()
    assert build_strategy(settings) == "auto"
    assert settings.ranks is ALONE
    assert settings.sharding is None


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_several_devices_are_replicas_unless_weights_are_sharded(strategy):
    settings = TrainerSettings(devices=2, num_nodes=2, strategy=strategy)
    assert isinstance(build_strategy(settings), ReplicaStrategy)
    assert settings.ranks == ProcessRanks(lockstep=False)
    assert settings.world_size == 4


def test_sharding_names_both_sizes_of_the_mesh():
    """Lightning's defaults would shard over nodes alone: on one node, not at all."""
    settings = TrainerSettings(devices=2, num_nodes=3, strategy="fsdp2")
    strategy = build_strategy(settings)
    assert isinstance(strategy, ModelParallelStrategy)
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (6, 1)
    assert settings.ranks == ProcessRanks(lockstep=True)


def test_mixed_precision_is_left_to_the_sharding():
    settings = TrainerSettings(strategy="fsdp2", precision="bf16-mixed")
    assert settings.lightning_precision == "32-true"
    assert settings.sharding == Sharding(compute_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    assert TrainerSettings(precision="bf16-mixed").lightning_precision == "bf16-mixed"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "fsdp"}, "strategy is 'fsdp'"),
        ({"devices": 0}, "devices is 0"),
        ({"num_nodes": 0}, "num_nodes is 0"),
        ({"cpu_offload": True}, "cpu_offload is on without sharded weights"),
        ({"strategy": "fsdp2", "precision": "16-mixed"}, "precision is 16-mixed, which fsdp2 does not run"),
    ],
)
def test_contradictions_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        TrainerSettings(**values)


def test_gradients_are_sent_in_buckets_of_one_type(monkeypatch):
    monkeypatch.setattr("lightning_mmrl.training.ranks.BUCKET_ELEMENTS", 10)
    gradients = [torch.zeros(4), torch.zeros(6), torch.zeros(1), torch.zeros(25), torch.zeros(2, dtype=torch.float64)]
    sizes = [[each.numel() for each in bucket] for bucket in _buckets(gradients)]
    assert sizes == [[4, 6], [1], [25], [2]]
