"""vLLM's settings refuse values that cannot work, before anything is loaded."""

import pytest
import torch

from lightning_mmrl.cli.main import main
from lightning_mmrl.rollout.vllm.settings import CPU_SHARE, VLLMSettings


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("gpu_memory_utilization", 0.0, "above 0 and at most 1, or null"),
        ("gpu_memory_utilization", 1.5, "above 0 and at most 1, or null"),
        ("kv_cache_gib", -1.0, "above 0, or null"),
        ("max_model_len", 1, "above 1, or null"),
        ("max_num_seqs", 0, "above 0"),
        ("sleep_level", 2, "0 or 1"),
    ],
)
def test_a_setting_that_vllm_cannot_have_is_named(name, value, wanted):
    with pytest.raises(ValueError, match=rf"^rollout.settings.{name} is {value}; it must be {wanted}$"):
        VLLMSettings(**{name: value})


def test_the_command_line_says_it_before_it_loads_or_writes(tmp_path, capsys):
    overrides = ["experiment=quickstart", "rollout=vllm", f"output_dir={tmp_path}/runs"]
    assert main(["train", *overrides, "rollout.settings.sleep_level=2"]) == 2
    assert "rollout.settings.sleep_level is 2; it must be 0 or 1" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_without_a_share_a_gpu_gets_what_the_model_needs_and_a_cpu_the_former_share(monkeypatch):
    settings = VLLMSettings()
    assert settings.gpu_memory_utilization is None
    for on_gpu, share in ((False, CPU_SHARE), (True, None)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda on_gpu=on_gpu: on_gpu)
        assert settings.arguments(torch.bfloat16, [])["gpu_memory_utilization"] == share
    assert VLLMSettings(gpu_memory_utilization=0.5).arguments(torch.bfloat16, [])["gpu_memory_utilization"] == 0.5
