"""The critic values the state before each token, and has weights of its own."""

from dataclasses import replace

import families
import omni
import pytest
import torch

from lightning_mmrl.models.adapters import AdapterSettings
from lightning_mmrl.models.critic import Critic
from lightning_mmrl.types.batches import ScoringBatch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return omni.build(tmp_path_factory.mktemp("omni"))


@pytest.fixture
def model(checkpoint):
    encoder, policy = omni.load(checkpoint)
    families.exact(policy.model)
    return encoder, policy


def batch_of(encoder, group_size=2):
    prompts = omni.prompts(encoder)
    tokens, mask = omni.ragged_completions(encoder, group_size * len(prompts.samples))
    return ScoringBatch(prompts=prompts, completion_ids=tokens, completion_mask=mask, group_size=group_size)


def with_values(critic):
    """The same with a head that says something, and norms of its own in float64."""
    families.exact(critic.trunk.model)
    generator = torch.Generator().manual_seed(2)
    weight = critic.trunk.head.weight
    weight.data = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return critic


@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_values_are_those_of_separate_rows_through_the_stock_model(model, group_size):
    """At the state that each token is sampled in; negative control: at the token's own state."""
    encoder, policy = model
    batch = batch_of(encoder, group_size)
    critic = with_values(Critic(policy))
    with torch.no_grad():
        values = critic(batch)
        expected, late = families.stock_values("qwen2_5_omni", critic.trunk, batch)
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-9)
    assert not values[~batch.completion_mask].any()
    assert (values - late).abs().max() > 1e-3


def test_all_values_are_zero_at_first(model):
    encoder, policy = model
    assert not Critic(policy)(batch_of(encoder)).any()


def test_a_critic_that_is_moved_leaves_the_policy_where_it_is(model):
    encoder, policy = model
    batch, critic = batch_of(encoder), with_values(Critic(policy))
    with torch.no_grad():
        logprobs, values = policy(batch).logprobs, critic(batch)
        for parameter in critic.parameters():
            parameter.mul_(1.05)
        assert torch.equal(policy(batch).logprobs, logprobs)
        assert (critic(batch) - values).abs().max() > 1e-3
    critic(batch).sum().backward()
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert critic.trunk.head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("freeze", [["vision", "audio"], ["text"]])
def test_weights_that_do_not_train_are_shared_and_in_the_state_of_the_policy_alone(model, freeze):
    _, policy = model
    policy.freeze(freeze)
    critic = Critic(policy)
    own = dict(policy.named_parameters())
    for name, parameter in critic.named_parameters():
        place = name.removeprefix("trunk.")
        if parameter is critic.trunk.head.weight:
            assert parameter.requires_grad
        else:
            assert (parameter is own[place]) == (not own[place].requires_grad), name
    state = critic.state_dict()
    kept = {name for name, parameter in critic.named_parameters() if parameter.requires_grad}
    assert {name for name in state if name.removeprefix("trunk.") in own} == kept
    assert len(kept) < len(own)
    with_values(critic)
    critic.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        critic.load_state_dict({name: value for name, value in state.items() if "lm_head" not in name})


def test_a_critic_without_sharing_has_all_weights_itself(model):
    _, policy = model
    policy.freeze(["vision", "audio"])
    critic = Critic(policy, share_frozen=False)
    own = {id(parameter) for parameter in policy.parameters()}
    assert not any(id(parameter) in own for parameter in critic.parameters())


def test_under_an_adapter_the_critic_has_layers_of_its_own_on_the_same_weights(model):
    encoder, policy = model
    policy.adapt(AdapterSettings(r=2))
    batch, critic = batch_of(encoder), with_values(Critic(policy))
    trained = {name for name, parameter in critic.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in critic.state_dict() if "lora" in name or name.endswith("lm_head.weight")}
    critic(batch).sum().backward()
    assert any(parameter.grad is not None for name, parameter in critic.named_parameters() if "lora_B" in name)
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_the_values_of_a_row_do_not_depend_on_its_siblings(model):
    encoder, policy = model
    batch, critic = batch_of(encoder), with_values(Critic(policy))
    with torch.no_grad():
        together = critic(batch)
        alone = critic(replace(batch, completion_mask=batch.completion_mask & (torch.arange(8) % 2 == 0)[:, None]))
    torch.testing.assert_close(alone[::2], together[::2], rtol=1e-9, atol=1e-9)
    assert not alone[1::2].any()
