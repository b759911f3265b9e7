"""The reference policy is what the policy was when its stage began."""

import omni
import pytest
import torch
import torch.distributed as dist
from released_models import unit_parameters
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_mmrl.models.parallelize import ROOT, Sharding
from lightning_mmrl.models.reference import Reference
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.settings.model import AdapterSettings
from lightning_mmrl.types.batches import ScoringBatch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return omni.build(tmp_path_factory.mktemp("omni"))


@pytest.fixture
def model(checkpoint):
    return omni.load(checkpoint)


@pytest.fixture
def mesh():
    """Two ranks, the other of which hears nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def batch_of(encoder):
    prompts = omni.prompts(encoder)
    tokens, mask = omni.ragged_completions(encoder, 2 * len(prompts.samples))
    return ScoringBatch(prompts=prompts, completion_ids=tokens, completion_mask=mask, group_size=2)


def move(policy):
    """Changes all that trains, as optimizer steps do."""
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("freeze", [[], ["vision", "audio"], ["text"]])
def test_a_copy_stays_what_the_policy_was(model, freeze):
    """Towers and decoder, whichever train; negative control: the policy itself moves."""
    encoder, policy = model
    policy.freeze(freeze)
    batch = batch_of(encoder)
    with torch.no_grad():
        before = policy(batch).logprobs
    reference = Reference(policy)
    move(policy)
    reference.place(None, ALONE)
    with reference.entered() as frozen, torch.no_grad():
        assert torch.equal(frozen(batch).logprobs, before)
        assert (policy(batch).logprobs - before).abs().max() > 1e-3
        assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_weights_that_do_not_train_are_shared_and_no_others(model):
    _, policy = model
    policy.freeze(["vision", "audio"])
    with Reference(policy).entered() as frozen:
        for (name, own), theirs in zip(frozen.named_parameters(), policy.parameters(), strict=True):
            assert (own is theirs) == (not theirs.requires_grad), name


def test_a_copy_follows_the_policy_to_another_dtype(model):
    _, policy = model
    reference = Reference(policy)
    policy.to(torch.float32)
    reference.place(None, ALONE)
    with reference.entered() as frozen:
        assert {parameter.dtype for parameter in frozen.parameters()} == {torch.float32}


def test_a_sharded_copy_is_gathered_only_while_it_scores(model, mesh):
    """Its root as well, which a policy that trains keeps until its backward pass."""
    encoder, policy = model
    policy.freeze(["vision", "audio"])
    reference, batch = Reference(policy, Sharding()), batch_of(encoder)
    reference.place(mesh, ALONE)
    with reference.entered() as frozen:
        frozen(batch)
        gathered = {name for name, parameter in frozen.named_parameters() if not isinstance(parameter, DTensor)}
    assert gathered == set(unit_parameters(frozen)[ROOT])
    assert all(isinstance(parameter, DTensor) for parameter in frozen.parameters())
    assert not any(isinstance(parameter, DTensor) for parameter in policy.parameters())


@pytest.fixture
def lone_mesh():
    """One rank that shards, as on one device."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_shards_that_take_no_update_are_kept_as_they_are_gathered(checkpoint, lone_mesh):
    """Half the bytes, and bit for bit the log-probabilities of the policy, whose shards are float32."""
    encoder, policy = omni.load(checkpoint, dtype=torch.bfloat16)
    policy.freeze(["vision"])
    policy.keep_masters()
    sharding = Sharding(compute_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    reference, batch = Reference(policy, sharding), batch_of(encoder)
    sharding.apply(policy, lone_mesh, ALONE)
    reference.place(lone_mesh, ALONE)
    with torch.no_grad():
        own = policy(batch).logprobs
    with reference.entered() as frozen:
        assert {parameter.dtype for parameter in frozen.parameters()} == {torch.bfloat16}
        assert torch.equal(frozen(batch).logprobs, own)
    policy(batch).logprobs.sum().backward()
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert {parameter.grad.dtype for parameter in trained if parameter.grad is not None} == {torch.float32}
    assert not any(buffer.dtype == torch.bfloat16 for buffer in policy.buffers())


def test_an_adapted_policy_is_its_own_reference(model):
    encoder, policy = model
    batch = batch_of(encoder)
    with torch.no_grad():
        before = policy(batch).logprobs
    policy.adapt(AdapterSettings(r=2))
    reference = Reference(policy)
    move(policy)
    reference.place(None, ALONE)
    with reference.entered() as frozen:
        assert frozen is policy
        torch.testing.assert_close(frozen(batch).logprobs, before, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert (policy(batch).logprobs - before).abs().max() > 1e-3
