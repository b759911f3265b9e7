"""`mmrl train` refuses what does not fit before it loads or writes anything, and `mmrl plan` ends with an error."""

import pytest

from lightning_mmrl.cli import device_memory, train
from lightning_mmrl.cli.main import main


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it for its process
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sentence(capsys):
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    return out, line


@pytest.mark.parametrize("command", ["plan", "train"])
def test_a_preset_that_is_too_small_ends_both_commands_with_one_sentence(command, folder, capsys):
    assert main([command, "model=qwen2_5_3b", "trainer=gpu_24gb", "tracking=none"]) == 2
    _, line = sentence(capsys)
    assert line.startswith(f"mmrl {command}: stages.cold_start needs about ")
    assert "trainer.gpu_memory_gb is 24" in line
    assert list(folder.iterdir()) == []


def test_a_plan_that_is_refused_shows_where_the_memory_goes(capsys):
    main(["plan", "model=qwen2_5_3b", "trainer=gpu_24gb"])
    out, _ = sentence(capsys)
    assert "cold_start: memory per rank" in out
    assert "reason: memory per rank" in out


def test_a_run_asks_the_machine_before_it_loads_weights(folder, capsys, monkeypatch):
    monkeypatch.setattr(device_memory, "device_memory", lambda *about: (2**30, "cuda:0 (small)"))
    assert main(["train", "model=qwen2_5_3b", "tracking=none"]) == 2
    _, line = sentence(capsys)
    assert "and cuda:0 (small) has 1.0 GiB; " in line
    assert list(folder.iterdir()) == []


def test_ranks_of_a_machine_share_its_memory():
    alone, where = device_memory.device_memory("cpu", 1)
    shared, words = device_memory.device_memory("cpu", 4)
    assert (shared, where, words) == (alone // 4, "this machine", "each of 4 ranks on this machine")
    assert device_memory.device_memory("mps", 1) is None


def test_the_time_and_the_disk_of_a_stage_are_shown(capsys):
    assert main(["plan", "model=qwen2_5_0_5b", "trainer=gpu_24gb"]) == 0
    out, _ = capsys.readouterr()
    assert "reason       takes about " in out
    assert "40% of the peak in training and 4% in sampling (stated peak of the device 125 x 10^12 a second)" in out
    assert "GiB are free at runs" in out
    assert main(["plan", "model=qwen2_5_0_5b"]) == 0
    assert "no estimate: trainer.gpu_teraflops" in capsys.readouterr().out
    assert train.require_memory is device_memory.require_memory
