"""Work of the trainer while processes score: done in that time, and with the same numbers."""

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import omni
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.errors import RewardError
from lightning_mmrl.models.reference import Reference
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.pool import InlineRewards, RewardPool
from lightning_mmrl.settings.algorithm import AlgorithmSettings, KLSettings, RewardSettings, UpdateSettings
from lightning_mmrl.settings.stage import StageSettings, TrainerSettings
from lightning_mmrl.stages import policy_gradient
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.grpo import GRPOModule
from lightning_mmrl.tracking.lightning_logger import RunLogger
from lightning_mmrl.tracking.null import NullRun
from lightning_mmrl.training.trainer import training_trainer

HERE = Path(__file__).parent
pytestmark = pytest.mark.timeout(120)
SETTINGS = RewardSettings(weights={"file": 1.0}, num_workers=1, deadline_s=40.0, soft_deadline_s=None)


@pytest.fixture(scope="module")
def patient():
    """Spawned workers get this path too."""
    sys.path.insert(0, str(HERE))
    import patient_rewards

    yield patient_rewards
    sys.path.remove(str(HERE))


def trained(tmp_path, reward, *, beside, where="loss", rate=0.5, steps=2):
    """Weights and metrics of a stage with a divergence, whose rewards are in processes or not."""
    torch.manual_seed(0)
    encoder, policy = omni.load(omni.build(tmp_path / "omni"), dtype=torch.float32)
    kl = KLPenalty(settings=KLSettings(coefficient=0.2, estimator="k1" if where == "reward" else "k3", where=where))
    settings = AlgorithmSettings(group_size=4, update=UpdateSettings(tokens_per_microbatch=150))
    weighted = WeightedReward(components={"file": reward}, settings=SETTINGS)
    told = replace(SETTINGS, max_invalid_rate=rate)
    with RewardPool(weighted, told) if beside else InlineRewards(weighted, told) as rewards:
        module = GRPOModule(
            policy,
            omni.engine(encoder, policy, max_new_tokens=5),
            rewards,
            optimizer=OptimizerSettings(factory=partial(torch.optim.SGD, lr=1e-2), schedule=WarmupConstant()),
            context=StageContext(name="stage", settings=StageSettings(num_steps=steps), seed=0, directory=tmp_path),
            algorithm=Algorithm(
                advantage=GroupNormalized(), loss=PPOClip(), aggregation=TokenMean(), kl=kl, settings=settings
            ),
        )
        training_trainer(
            TrainerSettings(accelerator="cpu"),
            directory=tmp_path,
            logger=RunLogger(NullRun("run"), tmp_path),
            callbacks=[],
            validate_every=None,
            gradient_clip_val=None,
        ).fit(module, DataLoader([omni.prompts(encoder)] * steps, batch_size=None))
    found = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    return found, {name: value for name, value in module.latest.items() if not name.startswith("time/")}


@pytest.fixture
def touching(monkeypatch, tmp_path):
    """The reference makes a file when it begins."""
    flag, entered = tmp_path / "entered", Reference.entered

    def enter(self):
        flag.touch()
        return entered(self)

    monkeypatch.setattr(Reference, "entered", enter)
    return flag


@pytest.mark.parametrize("where", ["loss", "reward"])
def test_the_reference_scores_while_rewards_do_and_nothing_else_changes(patient, touching, tmp_path, where):
    """Every score waits for the reference: after the scores it would come too late, and no score would be valid."""
    found, stats = trained(tmp_path / "beside", patient.AfterFile(touching), beside=True, where=where)
    assert stats["rollout/invalid_scores"] == 0
    expected, told = trained(tmp_path / "inline", patient.AfterFile(touching), beside=False, where=where)
    assert stats == told
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_failed_verifier_gives_the_numbers_of_rewards_without_processes(patient, touching, monkeypatch, tmp_path):
    """What a completion is packed with decides its last bits, so the work is done again without the failed ones."""
    touching.touch()
    reward = patient.AfterFile(touching, failing="a")
    passes = []
    compared = policy_gradient.compared
    monkeypatch.setattr(policy_gradient, "compared", lambda *a, **k: passes.append(1) or compared(*a, **k))
    found, stats = trained(tmp_path / "beside", reward, beside=True, rate=1.0)
    again = len(passes)
    expected, told = trained(tmp_path / "inline", reward, beside=False, rate=1.0)
    assert 0 < stats["rollout/invalid_scores"] < 1
    assert (again, len(passes) - again) == (4, 2)
    assert {name for name in stats if stats[name] != told[name]} <= {"tokens/prompt", "tokens/completion"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_too_many_failures_end_the_stage_as_before(patient, touching, tmp_path):
    with pytest.raises(RewardError, match=r"32 of 32|16 of 16"):
        trained(tmp_path, patient.AfterFile(touching, failing=""), beside=True)


def test_an_error_in_the_trainer_does_not_wait_for_rewards(patient, monkeypatch, tmp_path):
    """As when a signal ends the run: nobody waits for a verifier that takes long."""

    def fails(*args, **kwargs):
        raise RuntimeError("no memory")

    monkeypatch.setattr(policy_gradient, "compared", fails)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="no memory"):
        trained(tmp_path, patient.AfterFile(tmp_path / "never"), beside=True)
    assert time.monotonic() - began < patient.WAIT_S
