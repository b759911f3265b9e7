"""The metrics of an update cover all its minibatches together."""

from collections import Counter
from functools import partial

import families
import omni
import one_step
import pytest
import torch

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.losses.aggregation import SequenceMean, TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.settings.algorithm import AlgorithmSettings, CriticSettings, UpdateSettings
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.context import OptimizerSettings
from lightning_mmrl.stages.grpo import GRPOModule
from lightning_mmrl.stages.ppo import PPOModule
from lightning_mmrl.stages.stats import draft_stats, update_stats

FIRST = {
    "loss": 0.5,
    "denominator": 30.0,
    "tokens": 20.0,
    "clipped": 3.0,
    "clipped_low": 1.0,
    "clipped_high": 2.0,
    "ratio": 21.0,
    "ratio_max": 1.5,
    "kl": 0.4,
    "entropy": 40.0,
    "grad_norm": 1.0,
    "reference_kl": 2.0,
    "value_loss": 0.2,
    "value_clip_fraction": 0.1,
    "value_tokens": 30.0,
    "critic_grad_norm": 4.0,
    "critic_learning_rate": 1e-3,
}
SECOND = {
    "loss": -1.0,
    "denominator": 10.0,
    "tokens": 5.0,
    "clipped": 2.0,
    "clipped_low": 2.0,
    "clipped_high": 0.0,
    "ratio": 4.0,
    "ratio_max": 1.25,
    "kl": 0.6,
    "entropy": 5.0,
    "grad_norm": 2.0,
    "reference_kl": 0.5,
    "value_loss": 1.0,
    "value_clip_fraction": 0.5,
    "value_tokens": 10.0,
    "critic_grad_norm": 1.0,
    "critic_learning_rate": 1e-3,
}


def test_two_minibatches_are_weighted_by_their_denominators_and_tokens():
    assert update_stats([FIRST, SECOND]) == pytest.approx(
        {
            "train/loss": (30 * 0.5 - 10 * 1.0) / 40,
            "train/clip_fraction": 5 / 25,
            "train/clip_fraction_low": 3 / 25,
            "train/clip_fraction_high": 2 / 25,
            "train/ratio_mean": 25 / 25,
            "train/ratio_max": 1.5,
            "train/approx_kl": 1.0 / 25,
            "train/entropy": 45 / 25,
            "train/tokens": 25.0,
            "train/grad_norm": 1.5,
            "train/reference_kl": 2.5 / 25,
            "train/value_loss": (30 * 0.2 + 10 * 1.0) / 40,
            "train/value_clip_fraction": (30 * 0.1 + 10 * 0.5) / 40,
            "train/critic_grad_norm": 2.5,
            "train/critic_learning_rate": 1e-3,
        },
        rel=1e-12,
    )


def test_one_minibatch_is_reported_as_it_is():
    third = {name: value / 3 for name, value in FIRST.items()}
    found = update_stats([third])
    assert found["train/loss"] == third["loss"]
    assert found["train/value_loss"] == third["value_loss"]
    assert found["train/entropy"] == third["entropy"] / third["tokens"]
    assert update_stats([]) == {}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return families.build("qwen2", tmp_path_factory.mktemp("qwen2") / "base")


def reported(checkpoint, folder, *, ppo, aggregation, **update):
    """The metrics of an iteration that moves no weight, so that every minibatch meets the same policy."""
    encoder, policy = families.load("qwen2", checkpoint, dtype=torch.float64)
    settings = one_step.settings(folder)
    settings["optimizer"] = OptimizerSettings(factory=partial(torch.optim.SGD, lr=0.0), schedule=WarmupConstant())
    module = (PPOModule if ppo else GRPOModule)(
        policy,
        omni.engine(encoder, policy, max_new_tokens=8),
        one_step.rewards(),
        **settings,
        algorithm=Algorithm(
            advantage=None if ppo else GroupNormalized(),
            settings=AlgorithmSettings(
                critic=CriticSettings(learning_rate=1e-300) if ppo else None,
                group_size=4,
                update=UpdateSettings(**update),
            ),
            loss=PPOClip(),
            aggregation=aggregation,
        ),
    )
    [values] = one_step.reports(module, families.prompts("qwen2", encoder), folder)
    return {name: value for name, value in values.items() if name.startswith("train/")}


@pytest.mark.parametrize("ppo", [False, True], ids=["grpo", "ppo"])
@pytest.mark.parametrize("aggregation", [TokenMean(), SequenceMean()])
def test_minibatches_report_what_the_whole_batch_would(checkpoint, tmp_path, ppo, aggregation):
    """Negative control: the first epoch alone has half of the tokens of two."""
    whole = reported(checkpoint, tmp_path / "whole", ppo=ppo, aggregation=aggregation)
    parts = reported(checkpoint, tmp_path / "parts", ppo=ppo, aggregation=aggregation, num_minibatches=2)
    twice = reported(checkpoint, tmp_path / "twice", ppo=ppo, aggregation=aggregation, num_minibatches=2, num_epochs=2)
    for name in whole.keys() - {"train/grad_norm", "train/critic_grad_norm"}:
        assert parts[name] == pytest.approx(whole[name], rel=1e-9, abs=1e-12), name
    assert twice["train/loss"] == pytest.approx(whole["train/loss"], rel=1e-9)
    assert twice["train/tokens"] == 2 * whole["train/tokens"] > 0


def test_drafts_are_counted_over_ranks_and_samplings():
    parts = [
        Counter({"passes": 3, "longest": 8, "drafted/own": 2}),
        Counter({"passes": 5, "longest": 8, "drafted/own": 2, "accepted/own": 3, "drafted/recent": 1}),
    ]
    assert draft_stats(parts[0] + parts[1]) == {
        "rollout/decode_passes": 8.0,
        "rollout/passes_per_token": 0.5,
        "rollout/drafted/own": 4.0,
        "rollout/accepted/own": 0.75,
        "rollout/drafted/recent": 1.0,
        "rollout/accepted/recent": 0.0,
    }
    assert draft_stats(Counter()) == {}
