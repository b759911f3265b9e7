"""Train and engine mismatch in a stage of a tiny model: what is reported, with and without a correction."""

import math
from dataclasses import replace

import families
import omni
import one_step
import pytest
import torch
from algorithms import algorithm_of

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.corrections.importance import ImportanceCorrection
from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.settings.algorithm import CriticSettings, UpdateSettings
from lightning_mmrl.stages.grpo import GRPOModule
from lightning_mmrl.stages.ppo import PPOModule

KEYS = {"weight_mean", "weight_max", "clip_fraction", "kl_k1", "kl_k3", "logprob_gap_max"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return families.build("qwen2", tmp_path_factory.mktemp("qwen2") / "base")


class Shifted:
    """An engine that claims other log-probabilities for what it sampled."""

    reads_features = True

    def __init__(self, engine, shift):
        self._engine, self._shift = engine, shift

    def generate(self, prompts, **arguments):
        rollout = self._engine.generate(prompts, **arguments)
        moved = rollout.sampler_logprobs + self._shift * rollout.completion_mask
        return replace(rollout, sampler_logprobs=moved)

    def load_weights(self, policy, version):
        return self._engine.load_weights(policy, version)

    def sleep(self):
        self._engine.sleep()


def run(checkpoint, folder, *, ppo=False, shift=0.0, top_p=1.0, steps=1, max_grad_norm=1.0, **more):
    """What a stage reports at each iteration, and the weights it ends with."""
    encoder, policy = families.load("qwen2", checkpoint, dtype=torch.float32)
    engine = omni.engine(encoder, policy, max_new_tokens=8, top_p=top_p)
    algorithm = algorithm_of(
        advantage=None if ppo else GroupNormalized(),
        critic=CriticSettings() if ppo else None,
        group_size=4,
        loss=PPOClip(),
        aggregation=TokenMean(),
        **more,
    )
    module = (PPOModule if ppo else GRPOModule)(
        policy,
        engine if not shift else Shifted(engine, shift),
        one_step.rewards(),
        **one_step.settings(folder),
        algorithm=algorithm,
    )
    module._context.settings.max_grad_norm = max_grad_norm
    seen = one_step.reports(module, families.prompts("qwen2", encoder), folder, steps)
    found = [{k.removeprefix("mismatch/"): v for k, v in step.items() if k.startswith("mismatch/")} for step in seen]
    return found, [parameter.detach().clone() for parameter in policy.parameters()]


@pytest.mark.parametrize("ppo", [False, True], ids=["grpo", "ppo"])
def test_an_engine_with_the_policys_weights_is_the_policy_to_rounding(checkpoint, tmp_path, ppo):
    """With one update and with several, where the weights have moved by the last; negative control: a shifted one."""
    for update in (UpdateSettings(), UpdateSettings(num_epochs=2)):
        for stats in run(checkpoint, tmp_path, ppo=ppo, steps=2, update=update)[0]:
            assert stats.keys() == KEYS
            assert stats["weight_mean"] == pytest.approx(1.0, abs=1e-4)
            assert stats["weight_max"] == pytest.approx(1.0, abs=1e-4)
            assert stats["logprob_gap_max"] < 1e-4
            assert abs(stats["kl_k1"]) < 1e-4
            assert stats["clip_fraction"] == 0.0
    [stats] = run(checkpoint, tmp_path, ppo=ppo, shift=0.2)[0]
    assert stats["weight_mean"] == pytest.approx(math.exp(-0.2), abs=1e-4)
    assert stats["kl_k1"] == pytest.approx(0.2, abs=1e-4)
    assert stats["logprob_gap_max"] == pytest.approx(0.2, abs=1e-4)
    assert stats["kl_k3"] == pytest.approx(math.exp(-0.2) - 1 + 0.2, abs=1e-4)


@pytest.mark.parametrize("ppo", [False, True], ids=["grpo", "ppo"])
def test_a_correction_scales_the_step_of_a_stage(checkpoint, tmp_path, ppo):
    """Every token half as likely to the policy: half the gradient of plain descent. Masked, there is no step at all."""
    start = [
        parameter.detach().clone()
        for parameter in families.load("qwen2", checkpoint, dtype=torch.float32)[1].parameters()
    ]
    ends = {}
    for name, correction in {
        "off": None,
        "half": ImportanceCorrection(),
        "none": ImportanceCorrection(mode="mask", floor=0.9),
    }.items():
        [stats], ends[name] = run(
            checkpoint, tmp_path, ppo=ppo, shift=math.log(2), max_grad_norm=math.inf, correction=correction
        )
        assert stats["clip_fraction"] == (1.0 if name == "none" else 0.0)
    steps = {
        name: torch.cat([(b - a).flatten() for a, b in zip(start, end, strict=True)]) for name, end in ends.items()
    }
    assert steps["off"].abs().max() > 1e-4
    torch.testing.assert_close(steps["half"], steps["off"] / 2, rtol=1e-3, atol=1e-6)
    assert not steps["none"].any()


def test_a_nucleus_shows_in_the_weights(checkpoint, tmp_path):
    """They are its mass at each token: at least top_p, and below 1."""
    [stats] = run(checkpoint, tmp_path, top_p=0.6, correction=ImportanceCorrection())[0]
    assert 0.6 < stats["weight_mean"] < 0.95
    assert stats["weight_max"] < 1 + 1e-4
    assert stats["logprob_gap_max"] < -math.log(0.6) + 1e-4
    # The mean of a logarithm, and the logarithm of a mean of weights that lie between 0.6 and 1.
    assert stats["kl_k1"] == pytest.approx(-math.log(stats["weight_mean"]), abs=0.05)  # they differ by Jensen's gap
