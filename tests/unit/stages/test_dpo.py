"""Sums over answers, the metrics of a step, and the mean reward, which only a step that is taken moves."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_mmrl.config.compose import compose
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.registry.kinds import kind_named
from lightning_mmrl.settings.dpo import DpoSettings, PreferenceSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.stages.accumulating import _Step
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.dpo import DPOModule, pair_logprobs, pair_sums

NAN = float("nan")


class Weight(nn.Linear):
    """A policy of one weight, with an adapter, so that no copy of it is made."""

    adapter = object()


@pytest.fixture
def stage(tmp_path):
    """A stage of one weight."""

    def made(**preference):
        settings = DpoSettings(num_steps=100, max_bad_steps=2, preference=PreferenceSettings(**preference))
        module = DPOModule(
            Weight(1, 1, bias=False),  # type: ignore[arg-type]
            optimizer=OptimizerSettings(factory=torch.optim.SGD, schedule=lambda step, num_steps: 1.0),
            context=StageContext(name="stage", settings=settings, seed=0, directory=tmp_path),
        )
        module._trainer = SimpleNamespace(precision_plugin=None, loggers=[], global_rank=0)  # type: ignore[assignment]
        return module

    return made


def take(module, number, loss, gradient):
    """The end of a step, as Lightning calls it."""
    module.policy.weight.grad = torch.full((1, 1), gradient)
    module._step = _Step(number=number, loss=loss, samples=())
    module.configure_gradient_clipping(torch.optim.SGD(module.policy.parameters(), lr=1.0), 1.0)


def test_rows_are_summed_pair_by_pair_where_the_mask_is_true():
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, NAN], [-0.5, NAN], [-1.5, -2.5]])
    reference = torch.tensor([[-1.0, -1.0], [-1.0, NAN], [-1.0, NAN], [-1.0, -1.0]])
    mask = torch.tensor([[True, True], [True, False], [True, False], [True, True]])
    found = pair_logprobs(logprobs, reference, mask)
    assert found.chosen.tolist() == [-3.0, -0.5]
    assert found.rejected.tolist() == [-3.0, -4.0]
    assert found.reference_chosen.tolist() == [-2.0, -1.0]
    assert found.reference_rejected.tolist() == [-1.0, -2.0]
    assert (found.tokens_chosen.tolist(), found.tokens_rejected.tolist()) == ([2.0, 1.0], [1.0, 2.0])
    sums = pair_sums(found, {"preference": torch.tensor([0.25, 0.5])})
    assert {name: float(value) for name, value in sums.items()} == {
        "preference_loss": 0.75,
        "reward_chosen": -1.0 + 0.5,
        "reward_rejected": -2.0 - 2.0,
        "pair_accuracy": 2.0,
        "logprob_chosen": -3.5,
        "logprob_rejected": -7.0,
        "drift_chosen": -0.5 + 0.5,
        "drift_rejected": -2.0 - 1.0,
    }


def test_what_is_reported_are_means_over_pairs_and_rewards_have_their_factor(stage):
    module = stage(beta=0.5, quality_weight=1.0)
    module._step = _Step(number=3, loss=2.0, samples=())
    module._learning_rate = lambda: 1e-3
    module.shift.add(1.0, 4)
    module._report_pairs({"reward_chosen": 4.0, "reward_rejected": -8.0, "pair_accuracy": 3.0}, 4)
    assert module._noted == {
        "train/loss": 2.0,
        "train/reward_chosen": 0.5,
        "train/reward_rejected": -1.0,
        "train/pair_accuracy": 0.75,
        "train/reward_margin": 1.5,
        "train/reward_shift": 0.25,
        "train/learning_rate": 1e-3,
    }
    assert module._rewards == (0.5 * (4.0 - 8.0), 8)


def test_only_a_step_that_is_taken_moves_the_mean_reward(stage):
    module = stage()
    module._rewards = 6.0, 4
    take(module, 1, 1.0, 0.5)
    assert (module.shift.mean, module.shift.count) == (1.5, 4)
    for number, (loss, gradient) in enumerate(((NAN, 0.5), (1.0, NAN)), start=2):
        module._rewards = NAN, 4
        take(module, number, loss, gradient)
    assert (module.shift.mean, module.shift.count) == (1.5, 4)
    module._rewards = 0.0, 8
    take(module, 4, 1.0, 0.5)
    assert (module.shift.mean, module.shift.count) == (0.5, 12)


def test_the_mean_reward_is_in_the_state(stage):
    first, second = stage(), stage()
    first.shift.add(2.0, 8)
    second.load_stage_state(first.stage_state())
    assert second.shift == first.shift
    assert first.stage_state()["reward_shift"] == {"mean": 0.25, "count": 8}


def test_a_module_of_another_kind_of_stage_is_refused(stage, tmp_path):
    module = stage()
    with pytest.raises(
        ConfigError, match=r"^stages.stage.module is DPOModule, which learns pairs, and the stage is sft"
    ):
        DPOModule(
            module.policy,
            optimizer=module._optimizer,
            context=replace(module._context, settings=StageSettings(kind="sft", num_steps=1)),
        )
    prefer = compose(["+stage@stages.prefer=dpo", "order=[prefer]"]).stages["prefer"]
    kind = kind_named("dpo", "kind")
    kind.preflight("stages.prefer", prefer)
    learns_targets = {"_target_": "lightning_mmrl.stages.sft.SFTModule"}
    with pytest.raises(ConfigError, match=r"^stages.prefer.module is SFTModule, which does not learn pairs; take DPO"):
        kind.preflight("stages.prefer", replace(prefer, module=learns_targets))  # type: ignore[arg-type]
