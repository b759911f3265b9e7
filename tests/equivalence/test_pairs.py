"""DPO and MPO do not depend on the split into microbatches or over ranks, nor on the prompt that two answers share."""

import math
from dataclasses import replace
from pathlib import Path

import adapted
import numpy as np
import omni
import pytest
import rank_cases
import ranks
import torch
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniRMSNorm

from lightning_mmrl.data.collate import collate_targets
from lightning_mmrl.models.reference import Reference
from lightning_mmrl.ops.masked import masked_sum
from lightning_mmrl.settings.model import AdapterSettings

CONTENTS = (*rank_cases.CONTENTS, *rank_cases.MODALITIES.values())
WHOLE, HALF, ALONE = 16_384, 240, 1
"""Tokens of a microbatch, for 1, 2 and 8 of them."""
FROZEN = {"freeze": ["vision", "audio"]}
POLICIES = {"trained towers": {}, "frozen towers": FROZEN, "adapter": {"adapter": ["text"]}}
WEIGHTS = {"preference_weight": 0.8, "quality_weight": 0.2, "generation_weight": 1.0}
BETA = 0.5

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def case(name, checkpoint, **changes):
    """Two optimizer steps over eight pairs each; the first moves the policy off its reference."""
    shared = {
        "stage": "dpo",
        "contents": CONTENTS,
        "steps": 2,
        "adam": False,
        "max_grad_norm": math.inf,
        "preference": {**WEIGHTS, "beta": BETA},
    }
    return {**shared, "name": name, "checkpoint": checkpoint, **changes}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(omni.build(tmp_path_factory.mktemp("pairs") / "omni"))


@pytest.fixture(scope="module")
def split(checkpoint, tmp_path_factory):
    """A policy's steps in one process, for a budget; each runs once."""
    known = {}

    def run(policy, tokens):
        if (policy, tokens) not in known:
            changed = {**POLICIES[policy], "tokens": tokens}
            folder = tmp_path_factory.mktemp("one")
            known[policy, tokens] = rank_cases.run_stage(case(policy, checkpoint, **changed), folder)
        return known[policy, tokens]

    return run


def worst(found, expected):
    """The largest relative error of any tensor."""
    return max(rank_cases.errors(found, expected).values())


def assert_same_steps(found, expected):
    """All numbers that the steps reported, and the last weights."""
    for ours, theirs in zip(found["steps"], expected["steps"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)
    assert worst(found["weights"], expected["weights"]) < 1e-9


@pytest.mark.parametrize("policy", POLICIES)
def test_one_two_and_eight_microbatches_have_one_loss_and_gradient(split, policy):
    whole = split(policy, WHOLE)
    if policy != "adapter":  # whose test starts with an adapter that has moved
        assert whole["steps"][1]["train/reward_shift"] == pytest.approx(0, abs=1e-12)
    for tokens, number in ((HALF, 2), (ALONE, 8)):
        found = split(policy, tokens)
        assert found["passes"] / whole["passes"] == number
        assert_same_steps(found, whole)
        assert worst(found["gradients"], whole["gradients"]) < (1e-7 if policy == "trained towers" else 1e-9)


class ExactNorm(torch.nn.Module):
    """The RMS norm of the model without its detour through float32."""

    def forward(self, hidden_states):
        """X / rms(x), times the weights."""
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)


def apart(checkpoint, contents):
    """Loss and gradient of MPO's first step, each answer by itself after a prompt of its own, and NumPy in between.

    The chain rule is applied by hand: the gradient of the loss with respect to each log-likelihood, times its gradient.
    """
    encoder, policy = omni.load(Path(checkpoint))
    policy.freeze(FROZEN["freeze"])
    found = rank_cases.pairs(encoder, contents, 0)
    likelihoods = []
    for item in (part for pair in found for part in (replace(pair, later=()), *pair.later)):
        batch = collate_targets([item], encoder.pad_token_id)
        likelihoods.append(masked_sum(policy(batch.scoring).logprobs, batch.completion_mask))
    lengths = np.array([len(pair.target_ids) for pair in found])
    # The policy is the reference: rewards are zero, and the sigmoid of zero is a half.
    num, chosen = len(found), np.array([each.item() for each in likelihoods[::2]])
    loss = 0.8 * math.log(2) + 0.2 * 2 * math.log(2) + float(np.mean(-chosen / lengths))
    preferred = 0.8 * BETA / 2 + 0.2 * BETA / 2
    slopes = [slope for length in lengths for slope in (-preferred - 1 / length, preferred)]
    sum(slope / num * each for slope, each in zip(slopes, likelihoods, strict=True)).backward()
    return loss, {f"policy.{name}": p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tokens", [WHOLE, ALONE])
def test_a_pair_that_shares_its_prompt_has_the_gradient_of_two_separate_passes(
    checkpoint, tmp_path, monkeypatch, tokens
):
    monkeypatch.setattr(Qwen2_5OmniRMSNorm, "forward", ExactNorm.forward)
    contents = CONTENTS[:4]
    found = rank_cases.run_stage(
        case("shared", checkpoint, contents=contents, steps=1, tokens=tokens, **FROZEN), tmp_path
    )
    loss, gradients = apart(checkpoint, contents)
    assert found["steps"][0]["train/loss"] == pytest.approx(loss, rel=1e-9)
    assert worst(found["gradients"], gradients) < 1e-9


def test_answers_that_are_exchanged_would_show(checkpoint, tmp_path, monkeypatch):
    """The negative control."""
    right = rank_cases.pairs
    frozen = {"contents": CONTENTS[:2], "steps": 1, **FROZEN}
    found = rank_cases.run_stage(case("right", checkpoint, **frozen), tmp_path)["gradients"]
    monkeypatch.setattr(
        rank_cases,
        "pairs",
        lambda *given: [replace(each.later[0], later=(replace(each, later=()),)) for each in right(*given)],
    )
    other = rank_cases.run_stage(case("turned", checkpoint, **frozen), tmp_path)["gradients"]
    assert 1e-3 < worst(found, other) < math.inf


def test_a_prompt_passes_frozen_towers_once_for_policy_and_reference(checkpoint, tmp_path):
    encoder, policy = omni.load(Path(checkpoint))
    policy.freeze(FROZEN["freeze"])
    one = case("once", checkpoint, contents=CONTENTS[:4], steps=1, **FROZEN)
    module = rank_cases.stage_module(one, encoder, policy, tmp_path)
    reference, decoded = module._reference._copy, []
    assert reference is not None
    for model in (policy, reference):
        model.model.model.layers[0].register_forward_hook(lambda _, inputs, __: decoded.append(inputs[0].shape[1]))
    [batch] = rank_cases.batches(one, encoder, range)
    scoring = module._encoded(batch.scoring)
    module._reference_logprobs(scoring)
    policy(scoring)
    assert policy.media.take_counters()["tower_prompts"] == 3  # the fourth is text alone
    assert reference.media.take_counters()["tower_prompts"] == 0
    tokens = int(batch.prompts.prompt_mask.sum() + batch.completion_mask.sum())
    assert decoded == [tokens, tokens]  # each prompt once for both answers


@pytest.mark.parametrize("mistake", [None, "moving reference"])
def test_the_reference_stays_where_the_stage_started(checkpoint, tmp_path, mistake):
    """The negative control compares the policy with itself, and finds no reward ever."""
    found = rank_cases.run_stage(case("moves", checkpoint, contents=CONTENTS[:2], mistake=mistake), tmp_path)
    first, second = found["steps"]
    assert first["train/reward_margin"] == pytest.approx(0, abs=1e-12)
    assert (abs(second["train/reward_margin"]) > 1e-6) == (mistake is None)


def test_an_adapter_that_is_off_is_the_frozen_copy(checkpoint, tmp_path):
    """Both for the weights that the stage started from, after the adapter has moved."""
    encoder, policy = omni.load(Path(checkpoint))
    copy = Reference(policy)
    policy.adapt(AdapterSettings(r=2, groups=["text"]))
    adapted.train(policy)
    off = Reference(policy)
    [batch] = rank_cases.batches(case("off", checkpoint, steps=1), encoder, range)
    found = []
    for reference in (copy, off):
        with reference.entered() as frozen:
            found.append(frozen(batch.scoring).logprobs)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        own = policy(batch.scoring).logprobs
    assert (own - found[1]).abs().max() > 1e-3  # the negative control: the adapter on


ON_RANKS = {"trained towers": {}, "frozen towers": FROZEN, "adapter": {"adapter": ["text"]}}


@pytest.fixture(scope="module")
def two_ranks(checkpoint, tmp_path_factory):
    """All cases on two ranks, which are started once."""
    named = [case(name, checkpoint, **changes, tokens=120, steps=3) for name, changes in ON_RANKS.items()]
    counted = case("own counts", checkpoint, **FROZEN, mistake="own counts", contents=CONTENTS[:4])
    return ranks.launch(rank_cases.on_strategies([*named, counted]), tmp_path_factory.mktemp("two"), timeout_s=400)


@pytest.mark.parametrize("strategy", rank_cases.STRATEGIES)
@pytest.mark.parametrize("name", ON_RANKS)
def test_two_ranks_have_loss_gradient_and_running_mean_of_one_process(two_ranks, checkpoint, tmp_path, name, strategy):
    expected = rank_cases.run_stage(case(name, checkpoint, **ON_RANKS[name], steps=3), tmp_path)
    both = two_ranks[f"{name}-{strategy}"]
    assert abs(expected["steps"][2]["train/reward_shift"]) > 1e-6  # the mean of the second step's rewards has moved
    for found in both:
        assert_same_steps(found, expected)
        assert worst(found["gradients"], expected["gradients"]) < (1e-7 if name == "trained towers" else 1e-9)
    assert both[0]["steps"] == both[1]["steps"]
    if strategy == "fsdp2":  # a rank with fewer microbatches joins the other's
        assert both[0]["passes"] == both[1]["passes"]


def test_ranks_that_count_their_own_pairs_alone_would_show(two_ranks, checkpoint, tmp_path):
    """The negative control."""
    expected = rank_cases.run_stage(case("alone", checkpoint, **FROZEN, contents=CONTENTS[:4]), tmp_path)
    found = two_ranks["own counts-ddp"][0]
    assert abs(found["steps"][1]["train/loss"] / expected["steps"][1]["train/loss"] - 1) > 1e-6
