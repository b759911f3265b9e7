"""Small updates move float32 masters, are lost in bfloat16 weights, and survive kills bit for bit."""

import shutil
from functools import partial

import families
import omni
import one_step
import pytest
import torch
import weights_moved
from exact_cases import STEPS, Stage, assert_equal, kill_in
from torch.utils.data import DataLoader

from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.settings.stage import StageSettings, TrainerSettings
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.sft import SFTModule
from lightning_mmrl.tracking.lightning_logger import RunLogger
from lightning_mmrl.tracking.null import NullRun
from lightning_mmrl.training.interruption import Interrupted, Interruption
from lightning_mmrl.training.trainer import training_trainer

MIXED = TrainerSettings(accelerator="cpu", precision="bf16-mixed")
DEFAULT_STEPS, DEFAULT_LR = 250, 1e-6
"""Of an rl stage."""


def moved(folder, trainer, tmp_path, steps=DEFAULT_STEPS):
    """The share of the weights with a gradient that the default optimizer moves."""
    encoder, policy = families.load("qwen2", folder, dtype=torch.bfloat16)
    if trainer.mixed:
        policy.keep_masters()
    factory = partial(torch.optim.AdamW, lr=DEFAULT_LR, weight_decay=0.01, betas=(0.9, 0.95))
    module = SFTModule(
        policy,
        optimizer=OptimizerSettings(factory=factory, schedule=WarmupConstant()),
        context=StageContext(name="stage", settings=StageSettings(num_steps=steps), seed=0, directory=tmp_path),
    )
    before = [each.detach().clone() for each in policy.parameters()]
    fitting = training_trainer(
        trainer,
        directory=tmp_path,
        logger=RunLogger(NullRun("run"), tmp_path),
        callbacks=[],
        validate_every=None,
        gradient_clip_val=1.0,
    )
    fitting.fit(module, DataLoader([one_step.targets("qwen2", encoder)] * steps, batch_size=None))
    state = fitting.optimizers[0].state
    reached = [state[each]["exp_avg_sq"] > 0 for each in policy.parameters()]
    changed = [each.detach() != start for each, start in zip(policy.parameters(), before, strict=True)]
    total = sum(int(each.sum()) for each in reached)
    return sum(int((one & other).sum()) for one, other in zip(reached, changed, strict=True)) / total


@pytest.mark.slow
def test_default_steps_move_masters_and_not_bfloat16_weights(tmp_path):
    """The second figure is the negative control, and the reason why such a stage is refused."""
    folder = families.build("qwen2", tmp_path / "model")
    assert moved(folder, MIXED, tmp_path) >= 0.99
    assert moved(folder, TrainerSettings(accelerator="cpu"), tmp_path) <= 0.1


def test_the_share_that_the_refusal_names_is_the_measured_one():
    """Weights of a usual width under random gradients; gradients that agree move no more of them."""
    assert weights_moved.share(torch.float32) >= 0.99
    assert weights_moved.share(torch.bfloat16) == pytest.approx(0.02, abs=0.005)
    assert weights_moved.share(torch.bfloat16, noise=0.0) == pytest.approx(0.02, abs=0.005)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return omni.build(tmp_path_factory.mktemp("model") / "omni")


def attempt(kind, checkpoint, folder, interruption):
    return Stage(kind, checkpoint, folder, interruption, every=STEPS + 1, trainer=MIXED, dtype=torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "place", "at"), [("sft", "scoring", 4), ("grpo", "reward", 3), ("ppo", "report", 4)])
def test_masters_resume_bit_for_bit(checkpoint, tmp_path, kind, place, at):
    """Negative control: masters that were rounded on the way lead elsewhere."""
    expected = attempt(kind, checkpoint, tmp_path / "whole", Interruption()).outcome()
    assert {tensor.dtype for tensor in expected[1].values() if tensor.is_floating_point()} == {torch.float32}
    with Interruption() as interruption:
        first = attempt(kind, checkpoint, tmp_path / "killed", interruption)
        kill_in(first, place, at)
        with pytest.raises(Interrupted):
            first.job.run()
    shutil.copytree(tmp_path / "killed", tmp_path / "rounded")
    with Interruption() as interruption:
        assert_equal(attempt(kind, checkpoint, tmp_path / "killed", interruption).outcome(), expected)
    with Interruption() as interruption:
        other = attempt(kind, checkpoint, tmp_path / "rounded", interruption)
        start = other.module.on_train_start

        def rounding():
            with torch.no_grad():
                for parameter in other.policy.parameters():
                    parameter.copy_(parameter.bfloat16())
            start()

        other.module.on_train_start = rounding
        with pytest.raises(AssertionError):
            assert_equal(other.outcome(), expected)
