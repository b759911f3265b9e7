"""PPO in a real Trainer on the tiny model: gradients written out, what it leaves alone, and a critic that learns."""

import copy
import math
from dataclasses import replace
from functools import partial

import families
import omni
import one_step
import pytest
import torch
from algorithms import algorithm_of, changed

from lightning_mmrl.algorithms.advantages.leave_one_out import LeaveOneOut
from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.pool import InlineRewards
from lightning_mmrl.rollout.scripted import ScriptedEngine
from lightning_mmrl.settings.algorithm import (
    CriticSettings,
    KLSettings,
    RewardSettings,
    UpdateSettings,
)
from lightning_mmrl.settings.rules import check_rules
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.grpo import GRPOModule
from lightning_mmrl.stages.ppo import PPOModule
from lightning_mmrl.types.batches import ScoringBatch

WORDS = ("angry", "user", "lowered brows and fast tone", "Which emotion?", "assistant angry user", "fast", "tone user")
CRITIC = CriticSettings(learning_rate=1e-2, max_grad_norm=math.inf, gamma=0.9, gae_lambda=0.8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return omni.build(tmp_path_factory.mktemp("omni"))


@pytest.fixture
def model(checkpoint):
    encoder, policy = omni.load(checkpoint)
    families.exact(policy.model)
    return encoder, policy


def text(prompt, place):
    """A completion of one to a few words."""
    return " ".join(WORDS[: 1 + (3 * prompt + place) % len(WORDS)])


class Reward:
    """Depends on the text; of prompt p1 the second completion's verifier fails."""

    def __call__(self, sample, completion):
        if sample.id == "p1" and completion.text == text(1, 1):
            raise RuntimeError("verifier down")
        return float(len(completion.text) % 7)


class Same:
    """Always the same."""

    def __call__(self, sample, completion):
        return 1.0


class Cutting(ScriptedEngine):
    """Says of the longest texts that they were truncated."""

    def generate(self, prompts, **arguments):
        rollout = super().generate(prompts, **arguments)
        cut = [replace(was, truncated=was.text == text(2, 0)) for was in rollout.completions]
        return replace(rollout, completions=tuple(cut))


def stage(model, folder, *, size=2, steps=1, reward=None, lr=1e-2, critic=CRITIC, factory=torch.optim.SGD, **more):
    encoder, policy = model
    texts = {f"p{prompt}": [text(prompt, place) for place in range(size)] for prompt in range(4)}
    engine = Cutting(texts, encode=encoder.encode_target, pad_token_id=encoder.pad_token_id)
    algorithm = algorithm_of(
        advantage=None,
        loss=PPOClip(),
        aggregation=TokenMean(),
        group_size=size,
        critic=critic,
        **more,
    )
    module = PPOModule(
        policy,
        engine,
        InlineRewards(
            WeightedReward(components={"length": reward or Reward()}, settings=RewardSettings(weights={"length": 1.0})),
            RewardSettings(max_invalid_rate=1.0),
        ),
        optimizer=OptimizerSettings(factory=partial(factory, lr=lr), schedule=WarmupConstant()),
        context=StageContext(name="stage", settings=StageSettings(num_steps=steps), seed=0, directory=folder),
        algorithm=algorithm,
    )
    if policy.head.weight.dtype == torch.float64:
        for copied in (module.critic.trunk, *([module._reference._copy] if module._reference else [])):
            families.exact(copied.model)
    return module


def fit(module, encoder, folder, steps=1):
    """Trains and returns what was reported at each iteration."""
    return one_step.reports(module, omni.prompts(encoder), folder, steps)


def gradients(module):
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}


def moved(module, by):
    """Another model of the same kind."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def written_out(policy, trunk, reference, scoring, rollout, counted, rewards, kl):
    """Gradients by weights of policy and critic, from stock forwards over separate rows and loops over tokens."""
    logprobs = families.stock_logprobs("qwen2_5_omni", policy, scoring)
    values, _ = families.stock_values("qwen2_5_omni", trunk, scoring)
    with torch.no_grad():
        frozen = families.stock_logprobs("qwen2_5_omni", reference, scoring)
    tokens, drift, known = [], logprobs.detach() - frozen, values.detach()
    for row in counted:
        length = int(rollout.completion_mask[row].sum())
        advantage = following = 0.0
        for c in reversed(range(length)):
            reward = -kl * drift[row, c].item() + (rewards[row] if c == length - 1 else 0.0)
            value = known[row, c].item()
            advantage = reward + 0.9 * following - value + 0.9 * 0.8 * advantage
            following = value
            tokens.append((row, c, advantage, advantage + value))
    mean = math.fsum(token[2] for token in tokens) / len(tokens)
    spread = math.sqrt(math.fsum((token[2] - mean) ** 2 for token in tokens) / len(tokens))
    loss = -sum(logprobs[row, c] * (advantage - mean) / spread for row, c, advantage, _ in tokens) / len(tokens)
    value_loss = sum((values[row, c] - target) ** 2 for row, c, _, target in tokens) / (2 * len(tokens))
    (loss + value_loss).backward()
    return gradients(policy), gradients(trunk), float(value_loss.detach())


@pytest.mark.parametrize(("size", "tokens"), [(1, 10**6), (2, 60), (4, 10**6), (8, 150)])
def test_an_iteration_has_the_gradients_of_the_papers(model, tmp_path, size, tokens):
    """Ragged, invalid and truncated completions, in one or many microbatches; towers and decoder train.

    Negative control: the critic's gradients are not those of the policy, and a policy without the penalty has others.
    """
    encoder, policy = model
    update = UpdateSettings(tokens_per_microbatch=tokens)
    kl = KLPenalty(KLSettings(coefficient=0.1, estimator="k1", where="reward"))
    module = stage(model, tmp_path, size=size, update=update, kl=kl, mask_truncated=True)
    module._context.settings.max_grad_norm = math.inf
    moved(module.critic, 0.05)
    moved(module._reference._copy, 0.02)
    copies = [copy.deepcopy(each) for each in (policy, module.critic.trunk, module._reference._copy)]
    for each in copies:
        families.exact(each.model)
    prompts = omni.prompts(encoder)
    rollout = module.engine.generate(prompts, group_size=size, seeds=[])
    scoring = ScoringBatch(
        prompts=prompts,
        completion_ids=rollout.completion_ids,
        completion_mask=rollout.completion_mask,
        group_size=size,
    )
    left_out = {(1, 1), *((p, g) for p in range(4) for g in range(size) if text(p, g) == text(2, 0))}
    counted = [p * size + g for p in range(4) for g in range(size) if (p, g) not in left_out]
    assert len(counted) < 4 * size
    rewards = [float(len(each.text) % 7) for each in rollout.completions]
    by_policy, by_critic, value_loss = written_out(*copies, scoring, rollout, counted, rewards, 0.1)
    taken = []  # before the first of the two optimizers steps, after which gradients are freed
    module.on_before_optimizer_step = lambda optimizer: taken.append(
        [gradients(policy), gradients(module.critic.trunk)]
    )
    [reported] = fit(module, encoder, tmp_path)
    assert reported["train/value_loss"] == pytest.approx(value_loss, rel=1e-9)
    assert reported["train/ratio_max"] == 1.0
    for found, expected in zip(taken[0], (by_policy, by_critic), strict=True):
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            # Towers compute parts in float32 whatever their weights are.
            tolerance = 1e-7 if name.startswith(("model.visual", "model.audio_tower")) else 1e-9
            error, largest = (found[name] - gradient).abs().max(), gradient.abs().max().clamp(min=1e-3)
            assert float(error / largest) <= tolerance, name
    name = "model.model.layers.0.mlp.up_proj.weight"
    assert (by_policy[name] - by_critic[name]).abs().max() > 1e-6


def test_without_a_valid_completion_nothing_moves(model, tmp_path):
    class Fails:
        def __call__(self, sample, completion):
            raise RuntimeError("verifier down")

    encoder, _ = model
    module = stage(model, tmp_path, reward=Fails())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    [reported] = fit(module, encoder, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert "train/value_loss" not in reported
    assert all(math.isfinite(value) for value in reported.values())


def test_a_critic_learns_what_completions_are_worth(checkpoint, tmp_path):
    """Of texts that stay the same: the error falls."""
    model = omni.load(checkpoint, dtype=torch.float32)
    critic = CriticSettings(learning_rate=3e-3, value_clip=None)
    module = stage(model, tmp_path, steps=12, lr=1e-6, critic=critic, factory=torch.optim.Adam)
    seen = fit(module, model[0], tmp_path, steps=12)
    assert seen[0]["rollout/value_mean"] == 0
    assert seen[0]["rollout/explained_variance"] == pytest.approx(0, abs=1e-6)
    assert seen[-1]["train/value_loss"] < 0.5 * seen[0]["train/value_loss"]


def test_a_constant_reward_is_learnt_and_its_advantages_vanish(checkpoint, tmp_path):
    model = omni.load(checkpoint, dtype=torch.float32)
    critic = CriticSettings(learning_rate=3e-3, value_clip=None, whiten=False)
    module = stage(model, tmp_path, steps=12, lr=1e-6, reward=Same(), critic=critic, factory=torch.optim.Adam)
    seen = fit(module, model[0], tmp_path, steps=12)
    assert seen[0]["train/value_loss"] == pytest.approx(0.5)
    assert seen[-1]["train/value_loss"] < 0.05
    assert abs(seen[-1]["rollout/value_mean"] - 1) < 0.3
    assert all("rollout/explained_variance" not in values for values in seen)


def test_several_updates_move_the_critic_further_and_clip_its_values(checkpoint, tmp_path):
    model = omni.load(checkpoint, dtype=torch.float32)
    critic = CriticSettings(learning_rate=3e-3, value_clip=0.01)
    update = UpdateSettings(num_epochs=3, num_minibatches=2)
    module = stage(model, tmp_path, lr=1e-4, critic=critic, factory=torch.optim.Adam, update=update)
    [reported] = fit(module, model[0], tmp_path)
    assert module.global_step == 2 * 6
    assert reported["train/value_clip_fraction"] > 0
    assert reported["train/critic_learning_rate"] == 3e-3
    assert reported["train/learning_rate"] == 1e-4


def test_an_estimator_and_a_critic_do_not_go_together(model, tmp_path):
    with pytest.raises(ValueError, match="give one of the two"):
        stage(model, tmp_path, critic=None)
    with pytest.raises(ValueError, match="give one of the two"):
        replace(PPOModule.default_algorithm, advantage=LeaveOneOut())


def test_the_algorithm_alone_decides_whether_there_is_a_critic(checkpoint, tmp_path):
    """Any preset with PPO's algorithm is PPO, to the last bit; negative control: another discount is another stage."""
    found = {}
    for name, kind, gamma in (("ppo", PPOModule, 0.9), ("grpo", GRPOModule, 0.9), ("other", GRPOModule, 0.5)):
        encoder, policy = omni.load(checkpoint)
        given = stage((encoder, policy), tmp_path / name, critic=replace(CRITIC, gamma=gamma))
        module = kind(
            policy,
            given.engine,
            given.rewards,
            optimizer=given._optimizer,
            context=given._context,
            algorithm=given.algorithm,
        )
        fit(module, encoder, tmp_path / name)
        found[name] = module.state_dict()
    assert found["ppo"].keys() == found["grpo"].keys()
    assert any(name.startswith("critic.trunk.") for name in found["ppo"])
    assert all(torch.equal(value, found["grpo"][name]) for name, value in found["ppo"].items())
    assert not all(torch.equal(value, found["other"][name]) for name, value in found["ppo"].items())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", -1e-6),
        ("max_grad_norm", 0.0),
        ("value_clip", 0.0),
        ("gamma", 0.0),
        ("gamma", 1.1),
        ("gae_lambda", -0.1),
        ("gae_lambda", math.nan),
    ],
)
def test_settings_that_cannot_work_are_refused(name, value):
    with pytest.raises(ConfigError, match=rf"critic\.{name} is "):
        check_rules(CriticSettings(**{name: value}), "critic")


def test_a_group_may_be_one_completion_with_a_critic_alone():
    assert changed(PPOModule.default_algorithm, group_size=1).settings.group_size == 1
    with pytest.raises(ValueError, match="group_size is 0"):
        changed(PPOModule.default_algorithm, group_size=0)
    with pytest.raises(ValueError, match="group_size is 1"):
        changed(GRPOModule.default_algorithm, group_size=1)
