"""The packed row equals G separate rows of the stock model, in values and gradients; controls fail."""

from dataclasses import replace

import omni
import pytest
import torch

from lightning_mmrl.models import policy as policy_module
from lightning_mmrl.types.batches import ScoringBatch

GROUP = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return omni.load(omni.build(tmp_path_factory.mktemp("omni")))


@pytest.fixture(scope="module")
def batch(model):
    encoder, _ = model
    prompts = omni.prompts(encoder, omni.WITH_IMAGES)
    tokens, mask = omni.ragged_completions(encoder, GROUP * len(prompts.samples))
    return ScoringBatch(prompts=prompts, completion_ids=tokens, completion_mask=mask, group_size=GROUP)


def stock_logprobs(policy, batch):
    """Each completion in a row of its own through the stock forward, which finds its own positions."""
    rows = []
    stock = policy.model
    for row in range(len(batch.completion_ids)):
        prompt = batch.prompts.select([row // batch.group_size])
        keep = prompt.prompt_mask[0]
        length = int(batch.completion_mask[row].sum())
        completion = batch.completion_ids[row, :length]
        ids = torch.cat([prompt.input_ids[0, keep], completion])[None]
        media = dict(prompt.media.tensors)
        seconds = torch.full((len(media["video_grid_thw"]),), 2 / (4 / 1.5)) if "video_grid_thw" in media else None
        logits = stock(
            input_ids=ids, attention_mask=torch.ones_like(ids), video_second_per_grid=seconds, **media
        ).logits[0, keep.sum() - 1 : -1]
        logits = (logits / policy.temperature).masked_fill(policy.banned, -torch.inf)
        logprobs = logits.log_softmax(-1).gather(-1, completion[:, None])[:, 0]
        rows.append(torch.nn.functional.pad(logprobs, (0, batch.completion_ids.shape[1] - length)))
    return torch.stack(rows)


def gradients(policy, logprobs, weights):
    policy.zero_grad()
    (logprobs * weights).sum().backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def test_packed_scoring_equals_the_stock_model_row_by_row(model, batch):
    _, policy = model
    with torch.no_grad():
        ours, stock = policy(batch).logprobs, stock_logprobs(policy, batch)
    assert ours.std() > 0.5  # the model must be far from uniform for agreement to mean anything
    # transformers computes norms and rotary tables in float32, so float64 weights agree to about 1e-6.
    torch.testing.assert_close(ours, stock, rtol=0, atol=5e-5)


def test_gradients_equal_those_of_separate_rows(model, batch):
    _, policy = model
    weights = torch.randn(batch.completion_ids.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours = gradients(policy, policy(batch).logprobs, weights)
    stock = gradients(policy, stock_logprobs(policy, batch), weights)
    assert ours.keys() == stock.keys()
    for name, gradient in stock.items():
        error = (ours[name] - gradient).norm() / gradient.norm().clamp(min=1e-9)
        assert error < 1e-4, f"{name}: {error}"


def test_towers_receive_gradients(model, batch):
    _, policy = model
    found = gradients(policy, policy(batch).logprobs, 1.0)
    assert found["model.visual.patch_embed.proj.weight"].abs().max() > 0
    assert found["model.audio_tower.conv1.weight"].abs().max() > 0


def _difference(policy, batch, monkeypatch, spoil):
    real = policy_module.pack_groups
    with torch.no_grad():
        right = policy(batch).logprobs
        monkeypatch.setattr(policy_module, "pack_groups", lambda *args: spoil(real(*args)))
        return (policy(batch).logprobs - right).abs().max().item()


def test_a_leak_between_siblings_shows(model, batch, monkeypatch):
    def leak(layout):
        size = layout.attention_mask.shape[-1]
        causal = torch.ones(size, size, dtype=torch.bool).tril()
        return replace(layout, attention_mask=causal.expand_as(layout.attention_mask))

    assert _difference(model[1], batch, monkeypatch, leak) > 0.1


def test_one_dimensional_positions_show(model, batch, monkeypatch):
    def flat(layout):
        size = layout.position_ids.shape[-1]
        return replace(layout, position_ids=torch.arange(size).expand_as(layout.position_ids))

    assert _difference(model[1], batch, monkeypatch, flat) > 0.1


def test_an_off_by_one_in_the_gather_shows(model, batch, monkeypatch):
    def late(layout):
        return replace(layout, predicts=layout.predicts + 1)

    assert _difference(model[1], batch, monkeypatch, late) > 0.1


def test_prompts_in_one_batch_do_not_see_each_other(model, batch):
    _, policy = model
    with torch.no_grad():
        together = policy(batch).logprobs
        for row in range(len(batch.prompts.samples)):
            rows = slice(row * GROUP, (row + 1) * GROUP)
            alone = policy(
                ScoringBatch(
                    prompts=batch.prompts.select([row]),
                    completion_ids=batch.completion_ids[rows],
                    completion_mask=batch.completion_mask[rows],
                    group_size=GROUP,
                )
            ).logprobs
            torch.testing.assert_close(alone, together[rows], rtol=0, atol=1e-9)


def test_frozen_towers_run_once_for_sampling_and_scoring(model, batch):
    _, policy = model
    runs = []
    handles = [
        tower.register_forward_hook(lambda *_: runs.append(1))
        for tower in (policy.model.visual, policy.model.audio_tower)
    ]
    try:
        with torch.no_grad():
            expected = policy(batch).logprobs
        assert len(runs) == 2
        policy.freeze(["vision", "audio"])
        prompts = policy.with_features(batch.prompts)
        with torch.no_grad():
            found = [policy(replace(batch, prompts=prompts)).logprobs for _ in range(2)]
        assert len(runs) == 4
        torch.testing.assert_close(found[1], expected, rtol=0, atol=1e-9)
    finally:
        for handle in handles:
            handle.remove()
        policy.model.requires_grad_(True)
