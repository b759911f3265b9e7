"""The canary on an engine of another implementation, without vLLM: the policy itself, with faults put in."""

from dataclasses import replace

import families
import omni
import pytest
import torch

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.rollout.canary import Canary
from lightning_mmrl.types.batches import ScoringBatch


class Provable:
    """Samples with the policy, to which `change` gives other prompts."""

    def __init__(self, encoder, policy, change):
        self.engine, self.policy, self.change = omni.engine(encoder, policy, max_new_tokens=4), policy, change

    def generate(self, prompts, **how):
        return self.engine.generate(self.change(prompts), **how)

    def first_logprobs(self, prompts):
        """Of every token, one at a time."""
        prompts = self.change(prompts)
        size = len(prompts.samples)
        found = [{} for _ in range(size)]
        for token in range(40):
            ids = torch.full((size, 1), token)
            batch = ScoringBatch(prompts=prompts, completion_ids=ids, completion_mask=ids >= 0, group_size=1)
            for row, value in enumerate(self.policy(batch).logprobs[:, 0].tolist()):
                found[row][token] = value
        return found


@pytest.fixture(scope="module", params=families.each())
def model(request, tmp_path_factory):
    folder = families.build(request.param, tmp_path_factory.mktemp(request.param) / "base")
    encoder, policy = families.load(request.param, folder, dtype=torch.float32)
    return encoder, policy, families.prompts(request.param, encoder)


def blanked(key):
    """Prompts whose media of one kind are lost."""

    def change(prompts):
        media = prompts.media
        tensors = {name: torch.zeros_like(each) if name == key else each for name, each in media.tensors.items()}
        return replace(prompts, media=replace(media, tensors=tensors, keys=()))

    return change


def test_the_policy_passes(model):
    encoder, policy, prompts = model
    engine = Provable(encoder, policy, lambda each: each)
    assert Canary().check(engine, omni.engine(encoder, policy, max_new_tokens=4), policy, prompts).largest < 1e-4


def test_a_medium_that_does_not_reach_the_engine_is_named(model):
    encoder, policy, prompts = model
    for kind, key in policy.media.backbone.tower_inputs.items():
        engine, trainer = Provable(encoder, policy, blanked(key)), omni.engine(encoder, policy, max_new_tokens=4)
        with pytest.raises(RolloutError, match=rf"from the trainer's, for sample .*{kind}"):
            Canary(num_prompts=16, tolerance=1e-5).check(engine, trainer, policy, prompts)
        with pytest.raises(RolloutError, match=f"the same probabilities with and without {kind} for sample"):
            Canary(num_prompts=16, tolerance=100.0).check(engine, trainer, policy, prompts)


def test_every_kind_that_a_family_reads_has_an_input(model):
    encoder, policy, prompts = model
    inputs = policy.media.backbone.tower_inputs
    assert set(inputs) == encoder.media_kinds
    assert set(inputs.values()) <= set(prompts.media.tensors)
