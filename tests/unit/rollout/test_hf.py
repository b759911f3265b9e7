import math
from contextlib import contextmanager
from dataclasses import replace

import omni
import pytest
import torch

from lightning_mmrl.errors import ConfigError, RolloutError
from lightning_mmrl.models.families.qwen_vision import normalized
from lightning_mmrl.rollout.sampling import group_seeds
from lightning_mmrl.types.batches import ScoringBatch

GROUP = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return omni.load(omni.build(tmp_path_factory.mktemp("omni")), temperature=0.7)


def engine(model, **how):
    encoder, policy = model
    return omni.engine(encoder, policy, **{"max_new_tokens": 8, **how})


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
        **normalized(batch.media.tensors),
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


def sampled(rollout):
    return [row[mask].tolist() for row, mask in zip(rollout.completion_ids, rollout.completion_mask, strict=True)]


def endless(model):
    """A token that is never sampled, as the only one that ends a row."""
    return model[0].banned_token_ids()[:1]


@pytest.mark.parametrize("contents", [omni.CONTENTS, ["Which emotion?"], ["angry", "<video><audio>" + "angry " * 60]])
@pytest.mark.parametrize("group_size", [1, 5])
def test_every_end_token_ends_a_row_and_is_its_last(model, contents, group_size):
    """Ended rows are those of an endless rollout with the same noise, cut behind the first end."""
    encoder, _ = model
    batch = omni.prompts(encoder, contents)
    seeds = group_seeds(3, 1, [each.id for each in batch.samples], group_size)
    length = 12
    long = engine(model, eos_token_ids=endless(model), max_new_tokens=length)
    rows = sampled(long.generate(batch, group_size=group_size, seeds=seeds))
    assert {len(row) for row in rows} == {length}
    ends = {rows[0][4], rows[-1][length - 1]}
    ended = engine(model, eos_token_ids=tuple(ends), max_new_tokens=length)
    rollout = ended.generate(batch, group_size=group_size, seeds=seeds)
    lengths = [next((place + 1 for place, token in enumerate(row) if token in ends), length) for row in rows]
    assert lengths[0] <= 5
    assert sampled(rollout) == [row[:stop] for row, stop in zip(rows, lengths, strict=True)]
    told = [(completion.num_tokens, completion.truncated) for completion in rollout.completions]
    assert told == [(stop, row[stop - 1] not in ends) for row, stop in zip(rows, lengths, strict=True)]
    assert rollout.completion_ids.shape == rollout.sampler_logprobs.shape == (len(rows), max(lengths))
    assert not rollout.sampler_logprobs[~rollout.completion_mask].any()
    assert (rollout.completion_ids[~rollout.completion_mask] == encoder.pad_token_id).all()


@contextmanager
def decoder_passes(policy):
    """The tokens of each pass through the decoder."""
    passes = []
    layer = policy._backbone.text_model.layers[0]
    hook = layer.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[:2].numel()))
    try:
        yield passes
    finally:
        hook.remove()


def test_a_generation_in_which_all_rows_end_at_once_takes_no_step(model):
    encoder, policy = model
    batch = omni.prompts(encoder)
    running = engine(model, eos_token_ids=range(len(policy.banned)))
    with decoder_passes(policy) as passes:
        rollout = running.generate(batch, group_size=2, seeds=[[0, 1]] * len(batch.samples))
    assert rollout.completion_ids.shape == (8, 1)
    assert rollout.completion_mask.all()
    assert not any(completion.truncated for completion in rollout.completions)
    assert passes == [int(batch.prompt_mask.sum())]


def test_one_token_is_all_that_a_limit_of_one_allows(model):
    encoder, policy = model
    batch = omni.prompts(encoder)
    running = engine(model, eos_token_ids=endless(model), max_new_tokens=1)
    with decoder_passes(policy) as passes:
        rollout = running.generate(batch, group_size=1, seeds=[[0]] * len(batch.samples), greedy=True)
    assert rollout.completion_ids.shape == (4, 1)
    assert all(completion.truncated for completion in rollout.completions)
    assert len(passes) == 1
    more = engine(model, eos_token_ids=endless(model), max_new_tokens=2)
    rows = sampled(more.generate(batch, group_size=1, seeds=[[0]] * len(batch.samples), greedy=True))
    assert [row[:1] for row in rows] == sampled(rollout)


def test_a_tiny_nucleus_is_greedy_and_was_sure_of_its_tokens(model):
    """Greedy itself has the log-probabilities of all tokens."""
    batch = omni.prompts(model[0])
    seeds = group_seeds(0, 1, [each.id for each in batch.samples], GROUP)
    narrow = engine(model, top_p=1e-6).generate(batch, group_size=GROUP, seeds=seeds)
    greedy = engine(model, top_p=1e-6).generate(batch, group_size=GROUP, seeds=seeds, greedy=True)
    assert torch.equal(narrow.completion_ids, greedy.completion_ids)
    assert not narrow.sampler_logprobs.any()
    assert greedy.sampler_logprobs[greedy.completion_mask].max() < -0.01
    assert not torch.equal(narrow.completion_ids, sample(model, batch).completion_ids)


def test_logprobs_of_a_nucleus_are_of_what_it_leaves(model):
    """Each exceeds that of all tokens by minus the log of a mass between top_p and 1; with all tokens by nothing."""
    batch = omni.prompts(model[0])
    gains = {}
    for top_p in (0.5, 1.0):
        rollout = sample(model, batch, top_p=top_p)
        scoring = ScoringBatch(
            prompts=batch,
            completion_ids=rollout.completion_ids,
            completion_mask=rollout.completion_mask,
            group_size=GROUP,
        )
        with torch.no_grad():
            gains[top_p] = (rollout.sampler_logprobs - model[1](scoring).logprobs)[rollout.completion_mask]
    assert gains[0.5].min() > 0.01
    assert gains[0.5].max() < math.log(2) + 5e-5
    assert gains[1.0].abs().max() < 5e-5


@pytest.mark.parametrize("top_p", [0.0, -0.1, 1.1, float("nan")])
def test_a_nucleus_without_or_beyond_all_tokens_is_refused(model, top_p):
    with pytest.raises(ConfigError, match=r"top_p is .*; it must be above 0 and at most 1"):
        engine(model, top_p=top_p)


def test_the_default_ends_are_all_of_the_checkpoints_generation_config(model):
    encoder, policy = model
    assert list(encoder.eos_token_ids) == policy.model.generation_config.eos_token_id
    assert len(encoder.eos_token_ids) == 2


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
    assert rollout.policy_version.tolist() == [7] * len(rollout.completions)


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_without_finite_probabilities_ends_there_and_the_others_are_what_they_were(
    model, monkeypatch, top_p, value
):
    """No index out of bounds: what comes of it is decided by whoever asked, on all ranks."""
    encoder, policy = model
    batch, text_states = omni.prompts(encoder), policy.text_states
    expected = sample(model, batch, top_p=top_p)

    def broken(token_ids, *args, **kwargs):
        states = text_states(token_ids, *args, **kwargs)
        first = torch.tensor([0])
        return states.index_fill(1, first, value) if states.shape[1] == len(batch.samples) * GROUP else states

    monkeypatch.setattr(policy, "text_states", broken)
    found = sample(model, batch, top_p=top_p)
    assert (found.completion_mask[0].sum(), bool(found.sampler_logprobs[0, 1].isnan())) == (2, True)
    assert found.completions[0].truncated
    assert torch.equal(found.completion_ids[4:, :2], expected.completion_ids[4:, :2])


def test_a_greedy_answer_without_finite_probabilities_is_refused_by_sample(model, monkeypatch):
    encoder, policy = model
    batch = omni.prompts(encoder)
    monkeypatch.setattr(policy, "next_logprobs", lambda states: states.new_full((len(states), 9), torch.nan))
    with pytest.raises(RolloutError, match="the model has no finite probabilities for sample p0: its weights or the"):
        engine(model).generate(batch, group_size=1, seeds=[[0]] * 4, greedy=True)
