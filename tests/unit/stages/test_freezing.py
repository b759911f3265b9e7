"""Freezing in a real training step: VisualThinker-R1-Zero's released flags froze nothing, and no test noticed."""

import omni
import one_step
import pytest
import torch

from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.settings.algorithm import AlgorithmSettings
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.grpo import GRPOModule
from lightning_mmrl.stages.sft import SFTModule

GROUPS = ("vision", "audio", "text")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return omni.build(tmp_path_factory.mktemp("omni"))


def trained(kind, encoder, policy, folder):
    """Trains for one step of a stage; returns the names of the weights that had a gradient."""
    names = set()

    def note(optimizer):
        names.update(name for name, each in policy.model.named_parameters() if each.grad is not None)

    batch = omni.prompts(encoder)
    if kind == "sft":
        module = SFTModule(policy, **one_step.settings(folder))
        module.on_before_optimizer_step = note
        one_step.fit(module, one_step.targets("qwen2_5_omni", encoder), folder)
        return names
    algorithm = Algorithm(
        advantage=GRPOModule.default_algorithm.advantage,
        loss=GRPOModule.default_algorithm.loss,
        aggregation=TokenMean(),
        settings=AlgorithmSettings(group_size=4),
    )
    engine = omni.engine(encoder, policy, max_new_tokens=6)
    module = GRPOModule(policy, engine, one_step.rewards(), algorithm=algorithm, **one_step.settings(folder))
    module.on_before_optimizer_step = note
    one_step.fit(module, batch, folder)
    return names


@pytest.mark.parametrize("kind", ["sft", "grpo"])
@pytest.mark.parametrize("freeze", [(), ("vision",), ("vision", "audio"), ("text",)], ids=" ".join)
def test_what_is_frozen_has_no_gradient_and_keeps_its_weights_and_the_rest_trains(checkpoint, tmp_path, kind, freeze):
    encoder, policy = omni.load(checkpoint, dtype=torch.float32)
    policy.freeze(freeze)
    prefixes = {group: tuple(policy.media.backbone.parameter_groups[group]) for group in GROUPS}
    before = {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}
    reached = trained(kind, encoder, policy, tmp_path)
    for group in GROUPS:
        members = {name: each for name, each in policy.model.named_parameters() if name.startswith(prefixes[group])}
        assert members
        moved = [name for name, each in members.items() if not torch.equal(each, before[name])]
        if group in freeze:
            assert not members.keys() & reached
            assert not moved
        else:
            assert members.keys() & reached
            assert moved
