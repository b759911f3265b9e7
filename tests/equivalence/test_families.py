"""For every family: packed scoring, stock forward and sampling give the same log-probabilities; controls fail."""

from dataclasses import replace

import families
import omni
import pytest
import torch

from lightning_mmrl.rollout.sampling import group_seeds
from lightning_mmrl.types.batches import ScoringBatch

GROUP = 3
EXACT = 1e-9


@pytest.fixture(scope="module", params=families.each())
def family(request, tmp_path_factory):
    folder = families.build(request.param, tmp_path_factory.mktemp(request.param))
    encoder, policy = families.load(request.param, folder, temperature=0.8)
    omni.spread(policy.model)
    return request.param, encoder, policy


@pytest.fixture(scope="module")
def batch(family):
    name, encoder, _ = family
    prompts = families.prompts(name, encoder)
    tokens, mask = omni.ragged_completions(encoder, GROUP * len(prompts.samples))
    return ScoringBatch(prompts=prompts, completion_ids=tokens, completion_mask=mask, group_size=GROUP)


@torch.no_grad()
def test_packed_scoring_equals_the_stock_model_row_by_row(family, batch):
    name, _, policy = family
    ours = policy(batch).logprobs
    assert ours.std() > 0.5  # the model must be far from uniform for agreement to mean anything
    torch.testing.assert_close(ours, families.stock_logprobs(name, policy, batch), rtol=0, atol=EXACT)


@torch.no_grad()
def test_wrong_positions_show(family, batch):
    _, _, policy = family
    shifted = replace(batch.prompts, next_position=batch.prompts.next_position + 3)
    assert (policy(replace(batch, prompts=shifted)).logprobs - policy(batch).logprobs).abs().max() > 0.01


@torch.no_grad()
def test_flat_positions_in_place_of_a_grid_show(family, batch):
    _, encoder, policy = family
    if not encoder.media_kinds:
        assert torch.equal(batch.prompts.position_ids[0], batch.prompts.position_ids[2])
        return
    flat = batch.prompts.position_ids[:1].expand(3, -1, -1)
    spoiled = replace(batch, prompts=replace(batch.prompts, position_ids=flat))
    assert (policy(spoiled).logprobs - policy(batch).logprobs).abs().max() > 0.01


@torch.no_grad()
def test_sampler_logprobs_equal_the_policys_own(family, batch):
    _, encoder, policy = family
    engine = omni.engine(encoder, policy, max_new_tokens=6)
    seeds = group_seeds(0, 1, [sample.id for sample in batch.prompts.samples], GROUP)
    rollout = engine.generate(batch.prompts, group_size=GROUP, seeds=seeds)
    scoring = replace(batch, completion_ids=rollout.completion_ids, completion_mask=rollout.completion_mask)
    torch.testing.assert_close(rollout.sampler_logprobs, policy(scoring).logprobs, rtol=0, atol=EXACT)
    order = [*range(1, len(seeds)), 0]
    other = policy(replace(scoring, prompts=batch.prompts.select(order))).logprobs
    assert (rollout.sampler_logprobs - other).abs().max() > 0.01


@torch.no_grad()
def test_a_batch_of_all_kinds_equals_its_prompts_alone(family, batch):
    _, _, policy = family
    together = policy(batch).logprobs
    for row in range(len(batch.prompts.samples)):
        rows = slice(row * GROUP, (row + 1) * GROUP)
        alone = ScoringBatch(
            prompts=batch.prompts.select([row]),
            completion_ids=batch.completion_ids[rows],
            completion_mask=batch.completion_mask[rows],
            group_size=GROUP,
        )
        torch.testing.assert_close(policy(alone).logprobs, together[rows], rtol=0, atol=EXACT)
