"""Gradients live from the backward pass to the optimizer step, and through no rollout, push or validation."""

import omni
import one_step
import pytest

from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.settings.algorithm import AlgorithmSettings, CriticSettings, UpdateSettings
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.ppo import PPOModule
from lightning_mmrl.stages.sft import SFTModule


def held(module):
    """How many parameters have a gradient."""
    return sum(each.grad is not None for each in module.parameters())


@pytest.fixture
def model(tmp_path):
    return omni.load(omni.build(tmp_path / "model"))


def test_an_iteration_holds_none_while_it_samples_and_pushes(model, tmp_path, monkeypatch):
    """Of policy and critic, with several updates, also where an update is skipped."""
    encoder, policy = model
    engine = omni.engine(encoder, policy, max_new_tokens=4)
    algorithm = Algorithm(
        advantage=None,
        settings=AlgorithmSettings(
            group_size=2, critic=CriticSettings(learning_rate=1e-3), update=UpdateSettings(num_minibatches=2)
        ),
        loss=PPOClip(),
        aggregation=TokenMean(),
    )
    module = PPOModule(policy, engine, one_step.rewards(), **one_step.settings(tmp_path), algorithm=algorithm)
    seen = {"generate": [], "load_weights": [], "step": []}

    def spy(name, whole):
        def call(*args, **kwargs):
            seen[name].append(held(module))
            return whole(*args, **kwargs)

        monkeypatch.setattr(engine, name, call)

    spy("generate", engine.generate)
    spy("load_weights", engine.load_weights)
    monkeypatch.setattr(module, "on_before_optimizer_step", lambda optimizer: seen["step"].append(held(module)))
    updates = []

    def found(step, numbers, samples, *, update=None):
        updates.append(update)
        return update is not None and sum(each is not None for each in updates) == 2

    monkeypatch.setattr(module._bad_steps, "found", found)
    module.on_train_batch_end = lambda *args: None  # the stage would end after its only step
    one_step.fit(module, omni.prompts(encoder), tmp_path, steps=2)
    assert seen["generate"] == seen["load_weights"] == [0, 0]
    assert len(seen["step"]) == 6
    assert min(seen["step"]) > 0


def test_a_step_of_automatic_optimization_leaves_none(model, tmp_path, monkeypatch):
    """A validation may come next."""
    encoder, policy = model
    module, seen = SFTModule(policy, **one_step.settings(tmp_path)), []
    monkeypatch.setattr(module, "on_before_optimizer_step", lambda optimizer: seen.append(held(module)))
    monkeypatch.setattr(module, "on_train_batch_end", lambda *args: seen.append(held(module)))
    one_step.fit(module, one_step.targets("qwen2_5_omni", encoder), tmp_path, steps=2)
    assert seen[0] == seen[2] > 0
    assert seen[1] == seen[3] == 0
