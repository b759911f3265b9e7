"""Float32 masters under half-precision passes: what is wide, what is not, and what a handoff holds."""

import json

import families
import omni
import pytest
import torch
from safetensors import safe_open

from lightning_mmrl.models import decode_cache, prefill, shared_prefix
from lightning_mmrl.models.critic import Critic
from lightning_mmrl.models.export import export_policy
from lightning_mmrl.settings.model import AdapterSettings
from lightning_mmrl.types.batches import ScoringBatch

HALF = torch.bfloat16


@pytest.fixture(scope="module", params=families.each())
def family(request, tmp_path_factory):
    return request.param, families.build(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture
def loaded(family):
    name, folder = family
    encoder, policy = families.load(name, folder, dtype=HALF)
    return name, encoder, policy


def scoring(name, encoder):
    prompts = families.prompts(name, encoder)
    tokens, mask = omni.ragged_completions(encoder, 2 * len(prompts.samples))
    return ScoringBatch(prompts=prompts, completion_ids=tokens, completion_mask=mask, group_size=2)


def angles(module):
    """Buffers of rotary embeddings."""
    return {name: buffer.clone() for name, buffer in module.named_buffers() if "inv_freq" in name}


def test_what_trains_is_wide_and_what_is_frozen_is_not(loaded):
    _, _, policy = loaded
    tied = policy.head.weight is policy.model.get_input_embeddings().weight
    policy.freeze(sorted(set(policy._backbone.parameter_groups) - {"text"}))
    policy.keep_masters()
    assert {each.dtype for each in policy.parameters() if each.requires_grad} == {torch.float32}
    assert {each.dtype for each in policy.parameters() if not each.requires_grad} <= {HALF}
    assert (policy.head.weight is policy.model.get_input_embeddings().weight) == tied


def test_an_adapter_is_wide_and_its_base_is_not(loaded):
    _, _, policy = loaded
    policy.adapt(AdapterSettings(r=4))
    policy.keep_masters()
    assert policy.rounded == {}
    own = {id(each) for each in policy.adapter.parameters()}
    assert {each.dtype for each in policy.parameters() if id(each) in own} == {torch.float32}
    assert {each.dtype for each in policy.parameters() if id(each) not in own} == {HALF}


def test_rotary_angles_stay_float32(family, loaded):
    """Negative control: converting the module, as bf16-true does, rounds them."""
    name, folder = family
    _, _, policy = loaded
    _, exact = families.load(name, folder, dtype=torch.float32)
    expected = angles(exact)
    policy.keep_masters()
    assert expected
    assert all(torch.equal(found, expected[key]) for key, found in angles(policy).items())
    rounded = angles(policy.to(HALF))
    assert any(not torch.equal(found.float(), expected[key]) for key, found in rounded.items())


def test_attention_gets_one_type_under_autocast(loaded, monkeypatch):
    """In scoring, prefill and decoding; the residual stream is float32, and so were rotated queries and keys."""
    name, encoder, policy = loaded
    policy.keep_masters()
    seen = []

    def spy(whole):
        def attend(query, key, value, *args, **kwargs):
            seen.append((query.dtype, key.dtype, value.dtype))
            return whole(query, key, value, *args, **kwargs)

        return attend

    for module, function in (
        (shared_prefix, "attend"),
        (prefill, "attend"),
        (decode_cache, "attend_block"),
        (decode_cache, "attend_padded"),
    ):
        monkeypatch.setattr(module, function, spy(getattr(module, function)))
    in_parts = decode_cache.attend_in_parts

    def parts(query, common, rest, *args):
        seen.append((query.dtype, common.dtype, common.dtype))
        return in_parts(query, common, rest, *args)

    monkeypatch.setattr(decode_cache, "attend_in_parts", parts)
    batch = scoring(name, encoder)
    with torch.autocast("cpu", HALF):
        policy(batch).logprobs.sum().backward()
        engine = omni.engine(encoder, policy, max_new_tokens=3)
        engine.generate(batch.prompts, group_size=2, seeds=[[1, 2]] * len(batch.prompts.samples))
    assert len(seen) > 3 * policy.text_config.num_hidden_layers
    assert set(seen) == {(HALF, HALF, HALF)}
    assert {each.grad.dtype for each in policy.parameters() if each.grad is not None} == {torch.float32}


def test_a_handoff_has_the_type_that_was_loaded(loaded, tmp_path):
    """Rounded to the nearest; tied weights stay one, and the configuration names the type of the files."""
    _, encoder, policy = loaded
    policy.keep_masters()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1e-3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    expected = {name: parameter.to(HALF) for name, parameter in policy.model.named_parameters()}
    export_policy(policy, encoder, tmp_path, started_from="base")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no mapping
    written = {key.removeprefix(encoder.engine_prefix): tensor for key, tensor in found.items()}
    assert {tensor.dtype for tensor in written.values()} == {HALF}
    assert sum(tensor.numel() for tensor in written.values()) == sum(each.numel() for each in expected.values())
    config = json.loads((tmp_path / "config.json").read_text())
    assert {part["dtype"] for part in (config, config.get("thinker_config", config))} == {"bfloat16"}
    assert all(torch.equal(written[key], expected[key]) for key in written.keys() & expected.keys())
    assert {each.dtype for each in policy.parameters()} == {torch.float32}


def test_a_critic_on_frozen_weights_learns_in_float32(loaded):
    name, encoder, policy = loaded
    policy.adapt(AdapterSettings(r=4))
    critic = Critic(policy)
    assert {each.dtype for each in critic.parameters() if each.requires_grad} == {torch.float32}
    values = critic(scoring(name, encoder))
    assert values.dtype == torch.float32
    values.sum().backward()
    assert critic.trunk.head.weight.grad.abs().sum() > 0
