"""Gradients that meet in one place are added in one order, so that a run with several threads repeats bit for bit.

torch adds the gradients of an index with whole numbers by `index_put_` with `accumulate`. On a CPU several threads add
float32 numbers there in the order in which they come (`cpu_atomic_add_float` in ATen/native/cpu/IndexKernel.cpp).
"""

import families
import omni
import pytest
import torch
from replays import Recording

from lightning_mmrl.models import shared_prefix
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.types.batches import ScoringBatch

GROUP, WIDTH = 3, 6
ACCUMULATING = ("aten.index_put", "aten._index_put_impl", "aten._unsafe_index_put")


@pytest.fixture(scope="module", params=families.each())
def world(request, tmp_path_factory):
    """Policy with towers that train, and a batch with all kinds of media."""
    name = request.param
    encoder, policy = families.load(name, families.build(name, tmp_path_factory.mktemp(name)), dtype=torch.float32)
    prompts = families.prompts(name, encoder)
    tokens, mask = omni.ragged_completions(encoder, GROUP * len(prompts.samples), width=WIDTH)
    return policy, ScoringBatch(prompts=prompts, completion_ids=tokens, completion_mask=mask, group_size=GROUP)


def added_in_any_order(policy, batch):
    """Operations of a forward and backward pass that add several numbers to one place by an index."""
    with Recording() as recording:
        policy(batch).logprobs.sum().backward()
    policy.zero_grad()
    found = []
    for func, args, kwargs, _ in recording.operations:
        if not str(func).startswith(ACCUMULATING) or not (kwargs.get("accumulate") or True in args[3:4]):
            continue
        index = [each for each in args[1] if each is not None and each.dtype != torch.bool]
        if index:
            places = torch.stack(torch.broadcast_tensors(*index)).flatten(1)
            found += [str(func)] * (places.unique(dim=1).shape[1] < places.shape[1])
    return found


@pytest.mark.parametrize("smallest_gain", [shared_prefix.SMALLEST_GAIN, 10.0], ids=["shared", "copied"])
def test_no_pass_adds_gradients_in_the_order_of_threads(world, monkeypatch, smallest_gain):
    monkeypatch.setattr(shared_prefix, "SMALLEST_GAIN", smallest_gain)
    assert added_in_any_order(*world) == []


@pytest.mark.parametrize("world", ["qwen2"], indirect=True)
def test_control_an_index_adds_them_in_the_order_of_threads(world, monkeypatch):
    shared = Policy._shared_states

    def indexed(self, batch):
        states = shared(self, batch)
        return states[torch.arange(len(states)).clamp(min=1)]

    monkeypatch.setattr(Policy, "_shared_states", indexed)
    assert added_in_any_order(*world) == ["aten.index_put.default"]
