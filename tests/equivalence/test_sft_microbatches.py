"""SFT does not depend on how a batch is split into microbatches or over ranks, nor on prompts that targets share."""

import math
from dataclasses import replace
from pathlib import Path

import omni
import pytest
import rank_cases
import ranks
import torch
from lightning.pytorch.plugins.precision import Precision
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniRMSNorm, rotate_half

from lightning_mmrl.data.collate import EncodedSample, collate_targets
from lightning_mmrl.data.exchanges import exchanges
from lightning_mmrl.data.targets import encoded_exchanges
from lightning_mmrl.ops.masked import masked_sum
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.types.records import Message, Sample

CONTENTS = (*rank_cases.CONTENTS, *rank_cases.MODALITIES.values())
WHOLE, HALF, ALONE = 16_384, 190, 1
"""Tokens of a microbatch, for 1, 2 and 8 of them."""
POLICIES = {
    "trained towers": {},
    "frozen towers": {"freeze": ["vision", "audio"]},
    "frozen text": {"freeze": ["text"]},
    "adapter": {"adapter": ["text"]},
    "adapters everywhere": {"adapter": ["text", "vision", "audio"]},
}
ON_RANKS = {
    "trained towers": {},
    "frozen towers": {"freeze": ["vision", "audio"]},
    "adapter": {"adapter": ["text"]},
    "offload": {"offload": True},
    "shared prompts": {"askers": 2, "contents": CONTENTS[:4]},
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def case(name, checkpoint, **changes):
    """One optimizer step over eight targets of prompts with all kinds of media."""
    shared = {"stage": "sft", "contents": CONTENTS, "steps": 1, "adam": False, "max_grad_norm": math.inf}
    return {**shared, "name": name, "checkpoint": checkpoint, **changes}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(omni.build(tmp_path_factory.mktemp("microbatches") / "omni"))


@pytest.fixture(scope="module")
def split(checkpoint, tmp_path_factory):
    """A policy's step in one process, for a budget; each runs once."""
    known = {}

    def run(policy, tokens, **changes):
        key = (policy, tokens, *changes)
        if key not in known:
            changed = {**POLICIES[policy], **changes, "tokens": tokens}
            known[key] = rank_cases.run_stage(case(policy, checkpoint, **changed), tmp_path_factory.mktemp("one"))
        return known[key]

    return run


def separate(checkpoint, name, contents=CONTENTS, askers=1):
    """The gradient of -sum of log-probs / number of tokens, each target by itself on a prompt of its own."""
    encoder, policy = omni.load(Path(checkpoint))
    policy.freeze(POLICIES[name].get("freeze", []))
    samples = rank_cases.items(encoder, contents, 0, targets=True, askers=askers)
    batches = [collate_targets([sample], encoder.pad_token_id) for sample in samples]
    num_tokens = sum(len(sample.target_ids) for sample in samples)
    for batch in batches:
        (-log_likelihood(policy, batch) / num_tokens).backward()
    return gradients(policy)


def test_the_gradient_of_dft_is_minus_the_mean_of_those_of_the_probabilities(split, checkpoint):
    """Derived from probabilities, over the whole batch; that of cross-entropy is another one."""
    encoder, policy = omni.load(Path(checkpoint))
    batch = collate_targets(rank_cases.items(encoder, CONTENTS, 0, targets=True), encoder.pad_token_id)
    probabilities = policy(batch.scoring).logprobs.exp()[batch.completion_mask]
    (-probabilities.mean()).backward()
    found = split("trained towers", HALF, dft=True)["gradients"]
    assert worst(found, gradients(policy)) < 1e-7
    assert worst(found, split("trained towers", HALF)["gradients"]) > 1e-2


def log_likelihood(policy, batch):
    """The sum of the log-probabilities of a batch's targets."""
    return masked_sum(policy(batch.scoring).logprobs, batch.completion_mask)


def gradients(policy):
    """As the cases name them."""
    return {f"policy.{name}": p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def worst(found, expected):
    """The largest relative error of any gradient."""
    return max(rank_cases.errors(found, expected).values())


def tolerance(policy):
    """Sums that pass a tower that trains are rounded more."""
    return 1e-9 if policy in ("frozen towers", "adapter") else 1e-7


def test_a_loss_scale_reaches_every_microbatch(split, checkpoint, tmp_path, monkeypatch):
    """As that of 16-mixed does, which Lightning runs on no CPU."""
    plain, before = split("frozen towers", WHOLE)["gradients"], Precision.pre_backward
    monkeypatch.setattr(Precision, "pre_backward", lambda self, loss, module: before(self, 8 * loss, module))
    changes = {**POLICIES["frozen towers"], "tokens": HALF}
    scaled = rank_cases.run_stage(case("scaled", checkpoint, **changes), tmp_path)["gradients"]
    assert worst(scaled, {name: 8 * gradient for name, gradient in plain.items()}) < 1e-9


@pytest.mark.parametrize("dft", [False, True], ids=["cross-entropy", "dft"])
@pytest.mark.parametrize("policy", POLICIES)
def test_one_two_and_eight_microbatches_have_one_loss_and_gradient(split, policy, dft):
    changes = {"dft": True} if dft else {}
    whole = split(policy, WHOLE, **changes)
    assert whole["passes"] == 1
    for tokens, number in ((HALF, 2), (ALONE, 8)):
        found = split(policy, tokens, **changes)
        assert found["passes"] == number
        assert found["steps"][0]["train/loss"] == pytest.approx(whole["steps"][0]["train/loss"], rel=1e-9)
        assert worst(found["gradients"], whole["gradients"]) < tolerance(policy)
        assert worst(found["weights"], whole["weights"]) < 1e-9


def test_that_gradient_is_the_token_mean_over_the_whole_batch(split, checkpoint):
    assert worst(split("trained towers", HALF)["gradients"], separate(checkpoint, "trained towers")) < 1e-7


def test_a_mean_of_the_means_of_microbatches_would_show(split, checkpoint):
    """The negative control: each microbatch divides by its own tokens."""
    encoder, policy = omni.load(Path(checkpoint))
    samples = rank_cases.items(encoder, CONTENTS, 0, targets=True)
    for first in range(0, 8, 4):
        batch = collate_targets(samples[first : first + 4], encoder.pad_token_id)
        (-log_likelihood(policy, batch) / batch.completion_mask.sum() / 2).backward()
    error = worst(gradients(policy), split("trained towers", WHOLE)["gradients"])
    assert 1e-3 < error < math.inf


class ExactNorm(torch.nn.Module):
    """The RMS norm of the model without its detour through float32."""

    def forward(self, hidden_states):
        """X / rms(x), times the weights."""
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)


def exact_rotation(queries, keys, cos, sin):
    """The rotation of the tower of pictures without its detour through float32."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return tuple(each * cos + rotate_half(each) * sin for each in (queries, keys))


@pytest.mark.parametrize("tokens", [WHOLE, 120, ALONE])
@pytest.mark.parametrize("policy", ["trained towers", "frozen towers"])
def test_targets_of_one_prompt_share_it_without_a_difference(checkpoint, tmp_path, monkeypatch, policy, tokens):
    """Without the float32 of the released model, which rounds each of the backward passes that are compared."""
    monkeypatch.setattr(Qwen2_5OmniRMSNorm, "forward", ExactNorm.forward)
    monkeypatch.setattr(modeling_qwen2_5_omni, "apply_rotary_pos_emb_vision", exact_rotation)
    shared = {"contents": CONTENTS[:4], "askers": 3}
    changes = {**POLICIES[policy], **shared, "tokens": tokens}
    found = rank_cases.run_stage(case(policy, checkpoint, **changes), tmp_path)["gradients"]
    assert worst(found, separate(checkpoint, policy, **shared)) < 1e-9


def test_a_prompt_that_is_shared_passes_towers_and_decoder_once(checkpoint):
    encoder, policy = omni.load(Path(checkpoint))
    samples = rank_cases.items(encoder, CONTENTS[:4], 0, targets=True, askers=3)
    batch = collate_targets(samples, encoder.pad_token_id)
    decoded = []
    policy.model.model.layers[0].register_forward_hook(lambda _, inputs, __: decoded.append(inputs[0].shape[1]))
    with torch.no_grad():
        log_likelihood(policy, batch)
    assert policy.media.take_counters()["tower_prompts"] == 3  # the fourth is text alone
    num_prompt_tokens = sum(len(sample.prompt["input_ids"]) for sample in samples[::3])
    assert decoded == [num_prompt_tokens + sum(len(sample.target_ids) for sample in samples)]


def test_targets_that_share_the_prompt_of_other_media_would_show(checkpoint):
    """The negative control: a second clip taken for the first."""
    encoder, policy = omni.load(Path(checkpoint))
    samples = rank_cases.items(encoder, ["<video>angry"] * 2, 0, targets=True)
    mistaken = [samples[0], replace(samples[1], prompt=samples[0].prompt, media_key=samples[0].media_key)]
    found = []
    for pair, num_prompts in ((samples, 2), (mistaken, 1)):
        batch = collate_targets(pair, encoder.pad_token_id)
        assert len(batch.prompts.samples) == num_prompts
        policy.zero_grad()
        (-log_likelihood(policy, batch) / batch.completion_mask.sum()).backward()
        found.append(gradients(policy))
    assert 1e-3 < worst(*found) < math.inf


@pytest.fixture(scope="module")
def two_ranks(checkpoint, tmp_path_factory):
    """All cases on two ranks, which are started once."""
    named = [case(name, checkpoint, **changes, tokens=120) for name, changes in ON_RANKS.items()]
    return ranks.launch(rank_cases.on_strategies(named), tmp_path_factory.mktemp("two"), timeout_s=400)


@pytest.mark.parametrize("strategy", rank_cases.STRATEGIES)
@pytest.mark.parametrize("name", ON_RANKS)
def test_two_ranks_with_several_microbatches_have_the_gradient_of_one_process(
    two_ranks, checkpoint, tmp_path, name, strategy
):
    expected = rank_cases.run_stage(case(name, checkpoint, **ON_RANKS[name]), tmp_path)
    both = two_ranks[f"{name}-{strategy}"]
    assert max(found["passes"] for found in both) > 1
    for found in both:
        assert found["steps"][0] == pytest.approx(expected["steps"][0], rel=1e-9)
        assert worst(found["gradients"], expected["gradients"]) < tolerance(name)
        assert worst(found["weights"], expected["weights"]) < 1e-9
    if strategy == "fsdp2":  # a rank with fewer microbatches joins the other's
        assert both[0]["passes"] == both[1]["passes"]


def talk(encoder, *, separately):
    """A conversation with media in its first and third question: as it is learned, or each target by itself."""
    contents = ("<image>angry", "user", "Which emotion?", "angry", "<audio>user", "fast tone", "angry", "user user")
    roles = ("user", "assistant") * (len(contents) // 2)
    messages = tuple(Message(role=role, content=text) for role, text in zip(roles, contents, strict=True))
    sample, template = Sample(id="talk", messages=messages), PromptTemplate()
    media = [encoder.encode_image(omni.noise_image(0)), encoder.encode_audio(omni.noise_audio(1))]
    found = exchanges(sample, template, supervised=True)
    groups = [[each] for each in found] if separately else [found]
    parts = [part for group in groups for part in encoded_exchanges(encoder, template.settings, group, media)]
    return [
        EncodedSample(sample=sample, prompt=each.prompt, target_ids=tuple(each.ids), target_mask=tuple(each.mask))
        for each in parts
    ]


def test_the_targets_of_a_conversation_are_learned_as_if_each_had_a_prompt_of_its_own(checkpoint, monkeypatch):
    monkeypatch.setattr(Qwen2_5OmniRMSNorm, "forward", ExactNorm.forward)
    encoder, policy = omni.load(Path(checkpoint))
    policy.freeze(["vision", "audio"])
    found = []
    for separately, num_prompts in ((True, 4), (False, 2)):
        batch = collate_targets(talk(encoder, separately=separately), encoder.pad_token_id)
        assert len(batch.samples) == num_prompts
        policy.zero_grad()
        value = log_likelihood(policy, batch)
        value.backward()
        found.append((value.item(), gradients(policy)))
    (apart, expected), (together, gradient) = found
    assert together == pytest.approx(apart, rel=1e-9)
    assert worst(gradient, expected) < 1e-9


def test_turns_between_targets_that_were_learned_too_would_show(checkpoint):
    """The negative control."""
    encoder, policy = omni.load(Path(checkpoint))
    items = talk(encoder, separately=False)
    values = [
        log_likelihood(policy, collate_targets(each, encoder.pad_token_id)).item()
        for each in (items, [replace(item, target_mask=()) for item in items])
    ]
    assert abs(values[1] / values[0] - 1) > 0.1
