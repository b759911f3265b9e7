"""KL penalty and entropy bonus in a stage of the tiny model: what they move, where they stand, what is reported."""

from functools import partial
from itertools import pairwise

import omni
import one_step
import pytest
import torch
from algorithms import algorithm_of

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.algorithms.penalties.entropy import EntropyBonus
from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.pool import InlineRewards
from lightning_mmrl.rollout.scripted import ScriptedEngine
from lightning_mmrl.settings.algorithm import (
    EntropySettings,
    KLSettings,
    RewardSettings,
    UpdateSettings,
)
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.policy_gradient import PolicyGradientModule

TEXTS = ["angry", "user lowered brows"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return omni.build(tmp_path_factory.mktemp("omni"))


@pytest.fixture
def model(checkpoint):
    return omni.load(checkpoint, dtype=torch.float32)


class Length:
    """Rewards that differ, or do not."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, sample, completion):
        return self.scale * len(completion.text)


def stage(model, folder, *, scale=1.0, steps=1, lr=1e-2, update=None, **terms):
    encoder, policy = model
    algorithm = algorithm_of(
        advantage=GroupNormalized(),
        loss=PPOClip(),
        aggregation=TokenMean(),
        group_size=2,
        update=update or UpdateSettings(),
        **terms,
    )
    engine = ScriptedEngine(
        {f"p{index}": TEXTS for index in range(4)}, encode=encoder.encode_target, pad_token_id=encoder.pad_token_id
    )
    return PolicyGradientModule(
        policy,
        engine,
        InlineRewards(
            WeightedReward(components={"length": Length(scale)}, settings=RewardSettings(weights={"length": 1.0}))
        ),
        optimizer=OptimizerSettings(factory=partial(torch.optim.SGD, lr=lr), schedule=WarmupConstant()),
        context=StageContext(name="stage", settings=StageSettings(num_steps=steps), seed=0, directory=folder),
        algorithm=algorithm,
    )


def run(module, encoder, folder, steps=1):
    """Trains and returns what was reported at each iteration."""
    return one_step.reports(module, omni.prompts(encoder), folder, steps)


def move(policy, size=0.01):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("freeze", [[], ["vision", "audio"]])
def test_a_penalty_in_the_loss_pulls_back_though_no_group_has_a_signal(model, tmp_path, estimator, freeze):
    """From weights that have left the reference; its towers are those of the start where towers train."""
    encoder, policy = model
    policy.freeze(freeze)
    kl = KLPenalty(KLSettings(coefficient=1.0, estimator=estimator))
    module = stage(model, tmp_path, scale=0.0, steps=4, lr=5e-3, kl=kl)
    move(policy)
    seen = run(module, encoder, tmp_path, steps=4)
    found = [values["train/reference_kl"] for values in seen]
    assert all(later < earlier for earlier, later in pairwise(found)), found
    assert {values["rollout/groups_with_signal"] for values in seen} == {0.0}
    assert {values["train/kl_coefficient"] for values in seen} == {1.0}


def test_at_the_reference_itself_a_penalty_moves_nothing(model, tmp_path):
    encoder, policy = model
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    [seen] = run(stage(model, tmp_path, scale=0.0, kl=KLPenalty(KLSettings(coefficient=1.0))), encoder, tmp_path)
    assert seen["train/reference_kl"] == pytest.approx(0.0, abs=1e-9)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=1e-6)


def test_a_penalty_in_the_reward_turns_into_advantages(model, tmp_path):
    """Equal rewards differ by how far each completion is from the reference; the first iteration starts there."""
    encoder, policy = model
    kl = KLPenalty(KLSettings(coefficient=0.5, estimator="k1", where="reward"))
    module = stage(model, tmp_path, scale=0.0, kl=kl)
    experiences = []
    advantages = module.advantages

    def keep(experience, iteration):
        found = advantages(experience, iteration)
        experiences.append((experience, found))
        return found

    module.advantages = keep
    move(policy)
    [seen] = run(module, encoder, tmp_path)
    [(experience, found)] = experiences
    drift = (experience.old_logprobs - experience.reference_logprobs).sum(-1).reshape(found.shape)
    assert (experience.old_logprobs != 0).equal(experience.rollout.completion_mask)
    expected = GroupNormalized()(-0.5 * drift, torch.ones_like(found, dtype=torch.bool))
    torch.testing.assert_close(found, expected)
    assert found.abs().min() > 0.1
    assert seen["train/ratio_max"] == seen["train/ratio_mean"] == 1.0


def test_an_entropy_bonus_raises_the_entropy_though_no_group_has_a_signal(model, tmp_path):
    encoder, _ = model
    module = stage(model, tmp_path, scale=0.0, steps=4, lr=5e-2, entropy=EntropyBonus(EntropySettings(coefficient=0.5)))
    seen = run(module, encoder, tmp_path, steps=4)
    found = [values["train/entropy"] for values in seen]
    assert all(later > earlier for earlier, later in pairwise(found))
    assert {values["train/entropy_coefficient"] for values in seen} == {0.5}
    assert "train/reference_kl" not in seen[0]


def test_coefficients_follow_their_schedules_by_iteration(model, tmp_path):
    encoder, _ = model
    kl = KLPenalty(KLSettings(coefficient=0.2), schedule=WarmupConstant(warmup_steps=2))
    entropy = EntropyBonus(EntropySettings(coefficient=0.1), schedule=lambda step, num_steps: 1 - step / num_steps)
    seen = run(stage(model, tmp_path, steps=4, kl=kl, entropy=entropy), encoder, tmp_path, steps=4)
    assert [values["train/kl_coefficient"] for values in seen] == pytest.approx([0.1, 0.2, 0.2, 0.2])
    assert [values["train/entropy_coefficient"] for values in seen] == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_the_reference_is_in_no_state_and_in_no_optimizer(model, tmp_path):
    encoder, policy = model
    keys = set(stage(model, tmp_path).state_dict())
    module = stage(model, tmp_path, kl=KLPenalty(KLSettings(coefficient=0.1)))
    assert set(module.state_dict()) == keys
    run(module, encoder, tmp_path)
    [group] = module.optimizers().param_groups
    assert {id(parameter) for parameter in group["params"]} <= {id(parameter) for parameter in policy.parameters()}


def test_several_updates_report_how_far_ratios_went(model, tmp_path):
    encoder, _ = model
    update = UpdateSettings(num_epochs=3)
    kl = KLPenalty(KLSettings(coefficient=0.1, estimator="k1", where="reward"))
    [seen] = run(stage(model, tmp_path, lr=0.1, update=update, kl=kl), encoder, tmp_path)
    assert seen["train/ratio_max"] > 1.0
    assert seen["train/ratio_max"] >= seen["train/ratio_mean"] > 0
    low, high = seen["train/clip_fraction_low"], seen["train/clip_fraction_high"]
    assert seen["train/clip_fraction"] == pytest.approx(low + high)


def test_terms_that_are_off_change_nothing(checkpoint, tmp_path):
    """Bit for bit; negative control: one that is on does."""
    found = []
    for terms in (
        {},
        {"kl": KLPenalty(KLSettings(coefficient=0.0, where="reward"))},
        {"entropy": EntropyBonus(EntropySettings(coefficient=0.01))},
    ):
        encoder, policy = pair = omni.load(checkpoint, dtype=torch.float32)
        run(stage(pair, tmp_path, steps=2, **terms), encoder, tmp_path, steps=2)
        found.append([parameter.detach().clone() for parameter in policy.parameters()])
    same = [all(torch.equal(*both) for both in zip(found[0], other, strict=True)) for other in found[1:]]
    assert same == [True, False]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(KLPenalty, KLSettings(coefficient=-1.0)), "coefficient is -1"),
        (partial(KLPenalty, KLSettings(coefficient=1.0, estimator="k4")), "estimator is 'k4', which is no choice"),
        (partial(KLPenalty, KLSettings(coefficient=1.0, where="loss_and_reward")), "where is 'loss_and_reward'"),
        (partial(EntropyBonus, EntropySettings(coefficient=float("inf"))), "coefficient is inf"),
        (partial(PPOClip, dual_clip=1.1), r"dual_clip is 1\.1"),
        (partial(PPOClip, ratio_cap=0.5), r"ratio_cap is 0\.5"),
    ],
)
def test_values_that_make_no_sense_are_refused(make, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        make()
