"""The router at its limits is RL or SFT alone; between them its gradient is that of both losses, however split."""

import math
from dataclasses import replace
from pathlib import Path

import omni
import pytest
import rank_cases
import torch
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniRMSNorm

from lightning_mmrl.data.collate import collate_prompts, collate_targets
from lightning_mmrl.ops.groups import group_mean, group_std
from lightning_mmrl.ops.masked import masked_sum

TEXTS = ("Which emotion? angry", "angry user", "Which emotion?", "user angry user", "user", "fast tone")
SFT_PLACES = (0, 3)
"""Of four prompts, those that `Passed` finds no right answer to."""
ROW_BY_ROW, HALF, WHOLE = 1, 120, 16_384

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(omni.build(tmp_path_factory.mktemp("router") / "omni"))


@pytest.fixture(scope="module")
def stage(checkpoint, tmp_path_factory):
    """Trains a stage of a few steps, once for each case."""
    known = {}

    def run(**case):
        key = repr(sorted(case.items()))
        if key not in known:
            whole = {"name": "stage", "stage": "grpo", "checkpoint": checkpoint, "steps": 2, "quiet": [], **case}
            known[key] = rank_cases.run_stage(whole, tmp_path_factory.mktemp("stage"))
        return known[key]

    return run


def without(step, *beginnings):
    return {name: value for name, value in step.items() if not name.startswith(beginnings)}


def worst(found, expected):
    return max(rank_cases.errors(found, expected).values())


ALGORITHMS = {
    "grpo": {"aggregation": "sequences"},
    "dr_grpo": {"aggregation": "constant"},
    "rloo": {"advantage": "rloo"},
    "batch statistics": {"advantage": "reinforce", "kl": {"coefficient": 0.1}},
    "penalized rewards": {
        "kl": {"coefficient": 0.1, "where": "reward", "estimator": "k1"},
        "minibatches": 2,
        "epochs": 2,
    },
    "selected groups": {"select": True, "quiet": [[0, 1], [1, 2]]},
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_router_that_sends_all_prompts_to_rl_changes_no_bit(stage, name):
    algorithm = ALGORITHMS[name]
    expected = stage(**algorithm)
    found = stage(router={"unsolved_at_most": None}, **algorithm)
    for step, reference in zip(found["steps"], expected["steps"], strict=True):
        assert without(step, "route/", "train/sft_") == reference
        assert (step["route/rl"], step["train/sft_tokens"]) == (1.0, 0.0)
    assert all(torch.equal(found["weights"][name], weight) for name, weight in expected["weights"].items())


def test_a_router_that_sends_some_prompts_elsewhere_would_show(stage):
    """The negative control."""
    routed, plain = stage(router={}), stage()
    assert worst(routed["weights"], plain["weights"]) > 1e-4
    assert routed["steps"][0]["train/loss"] != plain["steps"][0]["train/loss"]


@pytest.mark.parametrize("tokens", [HALF, WHOLE])
def test_a_router_that_sends_all_prompts_to_sft_is_sft_bit_for_bit(stage, tokens):
    """Prompts of text, in the same microbatches, over two steps of Adam."""
    shared = {"contents": TEXTS, "tokens": tokens, "steps": 3}
    found, expected = stage(router={"unsolved_at_most": 1.0}, **shared), stage(stage="sft", **shared)
    for step, reference in zip(found["steps"], expected["steps"], strict=True):
        assert step["route/sft"] == 1.0
        assert step["train/sft_loss"] == reference["train/loss"]
        assert step["tokens/completion"] == reference["tokens/completion"]  # of updates; none is of a completion
    assert all(torch.equal(found["weights"][name], weight) for name, weight in expected["weights"].items())


@pytest.mark.parametrize("freeze", [[], ["vision", "audio"]], ids=["trained towers", "frozen towers"])
def test_with_media_it_is_sft_but_for_the_rounding_of_towers_that_run_once(stage, freeze):
    shared = {"freeze": freeze, "adam": False, "tokens": HALF}
    found, expected = stage(router={"unsolved_at_most": 1.0}, **shared), stage(stage="sft", **shared)
    assert worst(found["weights"], expected["weights"]) < 1e-9


def test_another_target_would_show(stage):
    """The negative control: the targets of two prompts are missing, so that they stay in RL."""
    shared = {"contents": TEXTS, "tokens": WHOLE, "steps": 3}
    found = stage(router={"unsolved_at_most": 1.0}, missing=["s0-1", "s1-4"], **shared)
    assert [step["route/without_target"] for step in found["steps"]] == [1 / 6, 1 / 6, 0.0]
    assert worst(found["weights"], stage(stage="sft", **shared)["weights"]) > 1e-4


ONE_STEP = {"steps": 1, "adam": False, "max_grad_norm": math.inf, "aggregation": "tokens"}


@pytest.mark.parametrize("coefficients", [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0), (1.0, 0.0)], ids=str)
def test_the_gradient_is_that_of_both_losses_over_their_own_prompts(stage, checkpoint, coefficients):
    """Derived from log-probabilities, each loss with its own denominator."""
    router = dict(zip(("rl_coefficient", "sft_coefficient"), coefficients, strict=True))
    frozen = ["vision", "audio"]
    found = stage(router=router, freeze=frozen, **ONE_STEP)["gradients"]
    encoder, policy = omni.load(Path(checkpoint))
    policy.freeze(frozen)
    samples = rank_cases.items(encoder, rank_cases.CONTENTS, 0, targets=True)
    targets = collate_targets([samples[place] for place in SFT_PLACES], encoder.pad_token_id)
    sft = -log_likelihoods(policy, targets, 1).sum() / targets.completion_mask.sum()
    rl = surrogate(policy, encoder, [samples[place] for place in range(4) if place not in SFT_PLACES])
    (coefficients[0] * rl + coefficients[1] * sft).backward()
    expected = {f"policy.{name}": each.grad for name, each in policy.named_parameters() if each.grad is not None}
    assert worst(found, expected) < 1e-9


def log_likelihoods(policy, batch, size):
    """Of each row, summed over its tokens."""
    return masked_sum(policy(batch.scoring).logprobs, batch.completion_mask, dim=-1).reshape(-1, size)


def surrogate(policy, encoder, samples):
    """Minus the sum of A log p over all completions / number of tokens: the gradient of GRPO's first update."""
    answers = [rank_cases.script(0, int(each.sample.id[-1]), quiet=False) for each in samples]
    rewards = torch.tensor([[len(text) % 7 for text in group] for group in answers], dtype=torch.float32)
    valid = torch.ones_like(rewards, dtype=torch.bool)
    centered = rewards - group_mean(rewards, valid)[:, None]
    advantages = centered / (group_std(rewards, valid)[:, None] + 1e-4)
    groups = [
        replace(each, target_ids=tuple(encoder.encode_target(text)))
        for each, group in zip(samples, answers, strict=True)
        for text in group
    ]
    batch = collate_targets(groups, encoder.pad_token_id)
    size = len(groups) // len(batch.prompts.samples)
    return -(advantages * log_likelihoods(policy, batch, size)).sum() / batch.completion_mask.sum()


class ExactNorm(torch.nn.Module):
    """The RMS norm of the model without its detour through float32."""

    def forward(self, hidden_states):
        """X / rms(x), times the weights."""
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)


@pytest.mark.parametrize("tokens", [ROW_BY_ROW, HALF])
def test_the_split_into_microbatches_does_not_matter(stage, tokens, monkeypatch):
    """Without the float32 of the released model, which rounds each of the passes that a prompt takes."""
    monkeypatch.setattr(Qwen2_5OmniRMSNorm, "forward", ExactNorm.forward)
    shared = {"name": "exact norm", "router": {}, "freeze": ["vision", "audio"], **ONE_STEP}
    whole, found = stage(tokens=WHOLE, **shared), stage(tokens=tokens, **shared)
    assert found["passes"] > whole["passes"]
    assert found["steps"][0] == pytest.approx(whole["steps"][0], rel=1e-9, abs=1e-12)
    assert worst(found["gradients"], whole["gradients"]) < 1e-9


def test_a_dropped_prompt_counts_nowhere(stage):
    """Solved prompts of a group without a signal have no gradient, but count in the denominator unless dropped."""
    kept, dropped = (stage(router={"solved_at_least": bound}, **ONE_STEP) for bound in (None, 1.0))
    assert dropped["steps"][0]["route/dropped"] == 1 / 4
    assert dropped["steps"][0]["train/tokens"] < kept["steps"][0]["train/tokens"]
    assert dropped["steps"][0]["train/sft_loss"] == kept["steps"][0]["train/sft_loss"]


def test_an_iteration_of_sft_alone_counts_as_an_update(stage):
    steps = stage(router={"unsolved_at_most": 1.0}, contents=TEXTS[:2])["steps"]
    assert [step["train/tokens"] for step in steps] == [0.0, 0.0]
    assert all(step["train/grad_norm"] > 0 for step in steps)


def test_prompts_with_media_are_collated_as_the_stage_does(checkpoint):
    """Otherwise the comparison with SFT would be one of other prompts."""
    encoder, _ = omni.load(Path(checkpoint))
    items = rank_cases.items(encoder, TEXTS, 0, targets=True)
    first, second = collate_prompts(items, encoder.pad_token_id), collate_targets(items, encoder.pad_token_id).prompts
    assert torch.equal(first.input_ids, second.input_ids)
