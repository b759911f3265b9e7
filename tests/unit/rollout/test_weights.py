"""Weights that are pushed to an engine: in the type in which the policy computes, whatever type it stores."""

import families
import pytest
import torch

from lightning_mmrl.models.policy import Policy
from lightning_mmrl.rollout.weights import PolicyWeights, pushed_bytes
from lightning_mmrl.settings.model import AdapterSettings


@pytest.fixture
def made(tmp_path):
    folder = families.build("qwen2_5_omni", tmp_path / "omni")
    _, backbone = families.parts("qwen2_5_omni", folder, torch.float32)

    def policy(compute_dtype=None):
        return Policy(backbone, banned_token_ids=(), compute_dtype=compute_dtype)

    return policy


def test_float32_weights_are_pushed_in_the_type_of_the_passes(made):
    policy = made(torch.bfloat16)
    stored = policy.model.state_dict()
    for pushed in (dict(PolicyWeights(policy).items()), dict(PolicyWeights(policy).described())):
        assert pushed.keys() == stored.keys()
        assert {each.dtype for each in pushed.values()} == {torch.bfloat16}
    for name, tensor in PolicyWeights(policy).items():
        assert torch.equal(tensor, stored[name].bfloat16())
    assert {each.dtype for each in policy.model.parameters()} == {torch.float32}


def test_weights_that_compute_as_they_are_stored_are_pushed_unchanged(made):
    """The control: nothing is rounded, and nothing is copied."""
    policy = made()
    assert policy.compute_dtype == torch.float32
    stored = policy.model.state_dict()
    assert all(tensor.data_ptr() == stored[name].data_ptr() for name, tensor in PolicyWeights(policy).items())


def test_an_adapter_is_merged_before_the_sum_is_rounded(made):
    policy = made(torch.bfloat16)
    policy.adapt(AdapterSettings(r=2, alpha=2, targets="q_proj"))
    with torch.no_grad():
        for parameter in policy.adapter.parameters():
            parameter.normal_()
    exact = {name: each.clone() for name, each in policy.adapter.merging(policy.model.state_dict())}
    for name, tensor in PolicyWeights(policy, "thinker.").items():
        assert torch.equal(tensor, exact[name.removeprefix("thinker.")].bfloat16())


@pytest.mark.parametrize(("dtype", "size"), [(None, 4), (torch.bfloat16, 2)])
def test_an_engine_holds_each_weight_once_in_the_type_of_the_passes(made, dtype, size):
    policy = made(dtype)
    wanted = size * sum(each.numel() for each in policy.model.parameters())
    assert pushed_bytes(policy) == wanted
    policy.adapt(AdapterSettings(r=2, alpha=2, targets="q_proj"))
    assert pushed_bytes(policy) == wanted
