"""An engine in the trainer's process leaves no trace there, and takes nothing from it; nothing here needs vllm."""

import torch

from lightning_mmrl.rollout.vllm.process import _apart


def test_no_autocast_reaches_the_engine():
    with torch.autocast("cpu", torch.bfloat16):
        with _apart():
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")


def test_the_trainer_draws_as_if_the_engine_had_drawn_nothing():
    torch.manual_seed(0)
    wanted = torch.rand(2)
    torch.manual_seed(0)
    with _apart():
        torch.rand(5)
    assert torch.equal(torch.rand(2), wanted)
