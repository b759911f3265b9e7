"""Rollouts with drafts against rollouts without, in float64: the same tokens, masks and log-probabilities."""

import drafters
import families
import omni
import pytest
import torch

from lightning_mmrl.models.policy import Policy
from lightning_mmrl.rollout.sampling import group_seeds
from lightning_mmrl.settings.model import ModelSettings

LENGTH = 14
EXACT = 1e-9
QUALITIES = {"empty": None, "garbage": 0.0, "half right": 0.7, "perfect": 1.0}


@pytest.fixture(scope="module", params=families.each())
def family(request, tmp_path_factory):
    """Encoder, policy, and the same policy with a copy of each prompt."""
    encoder, policy = families.load(
        request.param, families.build(request.param, tmp_path_factory.mktemp(request.param)), temperature=0.8
    )
    families.enliven(policy.model)
    banned = encoder.banned_token_ids()
    unshared = Policy(policy._backbone, banned_token_ids=banned, temperature=0.8, settings=ModelSettings(sharing=False))
    prompts = omni.prompts(encoder, (*families.FAMILIES[request.param].contents, "Which emotion? " * 30))
    return encoder, policy, unshared, prompts


def rollout_of(family, policy, drafter=None, *, group_size=3, **how):
    """A rollout, with some drafter."""
    encoder, *_, prompts = family
    settings = {"max_new_tokens": LENGTH, "eos_token_ids": families.frequent_ends(encoder, policy), **how}
    greedy = settings.pop("greedy", False)
    running = omni.engine(encoder, policy, **settings)
    running.drafter = drafter
    seeds = group_seeds(0, 1, [sample.id for sample in prompts.samples], group_size)
    return running.generate(prompts, group_size=group_size, seeds=seeds, greedy=greedy)


def sampled(rollout):
    return [row[mask].tolist() for row, mask in zip(rollout.completion_ids, rollout.completion_mask, strict=True)]


def told(rollout, quality, policy):
    """A drafter of some quality; wrong tokens are any, banned ones and ends among them."""
    if quality is None:
        return drafters.Told(sampled(rollout), 0.0, [0], longest=0)
    return drafters.Told(sampled(rollout), quality, range(len(policy.banned)))


def assert_same(found, expected):
    assert torch.equal(found.completion_ids, expected.completion_ids)
    assert torch.equal(found.completion_mask, expected.completion_mask)
    torch.testing.assert_close(found.sampler_logprobs, expected.sampler_logprobs, rtol=0, atol=EXACT)
    assert found.completions == expected.completions


SAMPLINGS = {"sampled": {}, "nucleus": {"top_p": 0.9}, "greedy": {"greedy": True}, "alone": {"group_size": 1}}


@pytest.mark.parametrize("sharing", [True, False], ids=["shared", "copied"])
@pytest.mark.parametrize("how", SAMPLINGS, ids=str)
def test_no_draft_changes_a_token(family, how, sharing):
    _, policy, unshared, _ = family
    policy = policy if sharing else unshared
    expected = rollout_of(family, policy, **SAMPLINGS[how])
    assert len({completion.num_tokens for completion in expected.completions}) > 2
    passes = {}
    for name, quality in QUALITIES.items():
        found = rollout_of(family, policy, told(expected, quality, policy), **SAMPLINGS[how])
        assert_same(found, expected)
        passes[name] = found.decoding["passes"]
        assert found.decoding["longest"] == expected.completion_mask.shape[1]
    assert passes["empty"] == expected.completion_mask.shape[1]
    assert passes["perfect"] < passes["half right"] < passes["empty"]
