"""The rates of a stage: the sizes of its checkpoint, the peak of its device, and where it samples."""

import json
from dataclasses import replace

import pytest
import torch

from lightning_mmrl.app.costs import device_peak, rates
from lightning_mmrl.config.compose import compose
from lightning_mmrl.planning.peaks import known_teraflops
from lightning_mmrl.settings.stage import TrainerSettings
from lightning_mmrl.types.costs import UPDATE, Counts, Work

LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 32,
}


def test_the_peak_is_the_configured_one_or_that_of_a_known_gpu(monkeypatch):
    assert device_peak(TrainerSettings(accelerator="cpu", gpu_teraflops=0.5)) == 5e11
    assert device_peak(TrainerSettings(accelerator="cpu")) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    assert device_peak(TrainerSettings(accelerator="gpu")) == 312e12
    assert device_peak(TrainerSettings(accelerator="gpu", gpu_teraflops=100)) == 1e14
    assert device_peak(TrainerSettings(accelerator="cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a device of tomorrow")
    assert device_peak(TrainerSettings(accelerator="auto")) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA GH200 480GB", 989.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla T4", None),
    ],
)
def test_a_name_is_read_word_by_word(name, peak):
    assert known_teraflops(name) == peak


def test_operations_follow_the_sizes_of_the_checkpoint(tmp_path):
    config = compose(["experiment=quickstart"])
    stage, counts = config.stages["cold_start"], Counts(passes={UPDATE: Work.of([4], [[2]])})
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    found = rates(config, stage, str(tmp_path))
    linear = 2 * (4 * 8 * 8 + 3 * 8 * 16)
    once = linear * 6 + 4 * 8 * (8 + 2 * 5) + 2 * (2 * 32 * 8)
    assert found.operations is not None
    assert found.operations(counts) == {"training": 3 * once, "sampling": 0}
    assert (found.peak, found.samples_here) == (None, True)
    assert rates(config, stage, str(tmp_path / "none")).operations is None
    experts = LLAMA | {"model_type": "mixtral", "num_local_experts": 8}
    (tmp_path / "config.json").write_text(json.dumps(experts), encoding="utf-8")
    assert rates(config, stage, str(tmp_path)).operations is None


def test_a_server_samples_on_other_devices(tmp_path):
    config = compose(["experiment=quickstart"])
    served = {"_target_": "x", "settings": {"server": {"url": "http://127.0.0.1:8000"}}}
    assert not rates(replace(config, rollout=served), config.stages["reason"], str(tmp_path)).samples_here
    assert not rates(config, config.stages["reason"], str(tmp_path), served).samples_here
    local = {"_target_": "x", "settings": {"server": None}}
    assert rates(replace(config, rollout=local), config.stages["reason"], str(tmp_path)).samples_here
