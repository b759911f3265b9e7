"""With an adapter, shared-prefix scoring and sampling still equal copies of the prompt, in values and gradients."""

import adapted
import families
import omni
import pytest
import torch

from lightning_mmrl.models.policy import Policy
from lightning_mmrl.rollout.sampling import group_seeds
from lightning_mmrl.types.batches import ScoringBatch

EXACT = 1e-9
NAMES = ("qwen2_5_omni", "qwen3_vl", "qwen2")


@pytest.fixture(scope="module", params=NAMES)
def family(request, tmp_path_factory):
    return request.param, families.build(request.param, tmp_path_factory.mktemp(request.param))


def two_policies(family, groups):
    """The batch, and two policies over the same adapted model: one shares prompts, one copies them."""
    name, folder = family
    encoder, shared = adapted.load(name, folder, spread=True, groups=groups)
    copied = Policy(shared._backbone, banned_token_ids=encoder.banned_token_ids(), sharing=False)
    assert shared.sharing_refusal is None
    return encoder, adapted.batch(name, encoder), shared, copied


def gradients(policy, batch):
    policy.zero_grad()
    logprobs = policy(batch).logprobs
    weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(2), dtype=logprobs.dtype)
    (logprobs * weights).sum().backward()
    return logprobs.detach(), {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("towers", [False, True])
def test_values_and_gradients(family, towers, checkpointing):
    groups = tuple(families.FAMILIES[family[0]].backbone.linear_layers())
    _, batch, shared, copied = two_policies(family, groups if towers else ("text",))
    if checkpointing:
        shared.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ours, expected = gradients(shared, batch), gradients(copied, batch)
    assert expected[0].std() > 0.5  # the model must be far from uniform for agreement to mean anything
    torch.testing.assert_close(ours[0], expected[0], rtol=0, atol=EXACT)
    assert ours[1].keys() == expected[1].keys()
    assert len(ours[1]) == len(shared.adapter.parameters())
    for name, gradient in expected[1].items():
        error = (ours[1][name] - gradient).norm() / gradient.norm()
        assert error < 1e-6, f"{name}: {error}"


def test_control_the_adapter_is_part_of_both_paths(family):
    """Without the adapter both give other values, so that equal values say something of it."""
    _, batch, shared, copied = two_policies(family, ("text",))
    trained = adapted.logprobs(shared, batch)
    for policy in (shared, copied):
        with shared.reference():
            assert (adapted.logprobs(policy, batch) - trained).abs().max() > 0.1


def test_samples_have_the_probabilities_that_scoring_finds(family):
    name = family[0]
    encoder, batch, shared, copied = two_policies(family, ("text",))
    rollouts = []
    for policy in (shared, copied):
        engine = omni.engine(encoder, policy, max_new_tokens=6)
        seeds = group_seeds(0, 1, [sample.id for sample in batch.prompts.samples], adapted.GROUP)
        rollouts.append(engine.generate(batch.prompts, group_size=adapted.GROUP, seeds=seeds))
    one, other = rollouts
    assert torch.equal(one.completion_ids, other.completion_ids), name
    scored = ScoringBatch(
        prompts=batch.prompts,
        completion_ids=one.completion_ids,
        completion_mask=one.completion_mask,
        group_size=adapted.GROUP,
    )
    found = adapted.logprobs(shared, scored)
    torch.testing.assert_close(one.sampler_logprobs, found, rtol=0, atol=EXACT)
    with shared.reference():
        assert (adapted.logprobs(shared, scored) - found).abs().max() > 0.1
