from dataclasses import replace

import omni
import pytest
import torch

from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.rollout.sampling import group_seeds
from lightning_mmrl.types.batches import ScoringBatch

GROUP = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return omni.load(omni.build(tmp_path_factory.mktemp("omni")), temperature=0.7)


def engine(model, max_new_tokens=8, prefill=""):
    encoder, policy = model
    return HFEngine(
        policy,
        decode=encoder.decode,
        eos_token_ids=encoder.eos_token_ids,
        pad_token_id=encoder.pad_token_id,
        max_new_tokens=max_new_tokens,
        prefill=prefill,
    )


def sample(model, batch, iteration=1, **how):
    seeds = group_seeds(0, iteration, [each.id for each in batch.samples], GROUP)
    return engine(model, **how).generate(batch, group_size=GROUP, seeds=seeds)


def test_sampler_logprobs_equal_the_policys_own(model):
    encoder, policy = model
    batch = omni.prompts(encoder)
    rollout = sample(model, batch)
    scoring = ScoringBatch(
        prompts=batch,
        completion_ids=rollout.completion_ids,
        completion_mask=rollout.completion_mask,
        group_size=GROUP,
    )
    with torch.no_grad():
        scored = policy(scoring).logprobs
        wrong = policy(replace(scoring, prompts=batch.select([1, 2, 3, 0]))).logprobs
    torch.testing.assert_close(rollout.sampler_logprobs, scored, rtol=0, atol=5e-5)
    assert (rollout.sampler_logprobs - wrong).abs().max() > 0.1


def test_greedy_equals_transformers_generate(model):
    encoder, policy = model
    batch = omni.prompts(encoder, ["<video><audio>Which emotion?"])
    ours = engine(model).generate(batch, group_size=1, seeds=[[0]], greedy=True)
    theirs = policy.model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.prompt_mask.long(),
        video_second_per_grid=torch.tensor([2 / (4 / 1.5)]),
        **batch.media.tensors,
        do_sample=False,
        max_new_tokens=8,
        suppress_tokens=list(encoder.banned_token_ids()),
    )[0, batch.input_ids.shape[1] :]
    assert ours.completion_ids[0, : len(theirs)].tolist() == theirs.tolist()


def test_a_row_depends_on_its_seed_alone(model):
    encoder, _ = model
    batch = omni.prompts(encoder)
    together = sample(model, batch)
    alone = sample(model, batch.select([2]))
    width = alone.completion_ids.shape[1]
    mask = together.completion_mask[2 * GROUP : 3 * GROUP, :width]
    assert torch.equal(mask, alone.completion_mask)
    assert torch.equal(together.completion_ids[2 * GROUP : 3 * GROUP, :width][mask], alone.completion_ids[mask])


def test_samples_and_iterations_differ(model):
    encoder, _ = model
    batch = omni.prompts(encoder)
    first, second = sample(model, batch), sample(model, batch, iteration=2)
    assert len({tuple(row) for row in first.completion_ids.tolist()}) > GROUP
    assert first.completions != second.completions


def test_the_mask_ends_with_the_end_token_and_truncation_is_told(model):
    encoder, _ = model
    rollout = sample(model, omni.prompts(encoder), max_new_tokens=30)
    ends = set(encoder.eos_token_ids)
    for row, mask, completion in zip(
        rollout.completion_ids.tolist(), rollout.completion_mask.tolist(), rollout.completions, strict=True
    ):
        counted = [token for token, counts in zip(row, mask, strict=True) if counts]
        assert completion.num_tokens == len(counted)
        assert completion.truncated == (counted[-1] not in ends)
        assert not ends & set(counted[:-1])
        assert mask == sorted(mask, reverse=True)
    assert {completion.truncated for completion in rollout.completions} == {True, False}


def test_banned_ids_are_never_sampled_and_the_prefill_is_prepended(model):
    encoder, policy = model
    with torch.no_grad():
        policy.model.lm_head.weight[list(encoder.banned_token_ids())] *= 100
    try:
        rollout = sample(model, omni.prompts(encoder), prefill="<think>")
    finally:
        with torch.no_grad():
            policy.model.lm_head.weight[list(encoder.banned_token_ids())] /= 100
    sampled = set(rollout.completion_ids[rollout.completion_mask].tolist())
    assert not sampled & set(encoder.banned_token_ids())
    assert all(completion.text.startswith("<think>") for completion in rollout.completions)


def test_generation_leaves_the_policy_in_its_mode(model):
    encoder, policy = model
    policy.train()
    sample(model, omni.prompts(encoder, ["angry"]))
    assert policy.training
    policy.eval()
    sample(model, omni.prompts(encoder, ["angry"]))
    assert not policy.training


def test_the_version_is_the_last_push(model):
    encoder, policy = model
    running = engine(model)
    running.load_weights(policy, 7)
    rollout = running.generate(omni.prompts(encoder, ["angry"]), group_size=1, seeds=[[0]])
    assert rollout.policy_version == 7
