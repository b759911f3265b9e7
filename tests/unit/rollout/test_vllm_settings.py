"""vLLM's settings refuse values that cannot work, before anything is loaded."""

import pytest

from lightning_mmrl.cli.main import main
from lightning_mmrl.rollout.vllm.settings import VLLMSettings


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("gpu_memory_utilization", 0.0, "above 0 and at most 1"),
        ("gpu_memory_utilization", 1.5, "above 0 and at most 1"),
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
