"""The optimizer step: the split into microbatches does not matter, dead groups are skipped exactly, masks count."""

from dataclasses import replace

import omni
import pytest
import torch

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.losses.aggregation import SequenceMean, TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.models.encoders import TowerGraph
from lightning_mmrl.ops.packing import Budget
from lightning_mmrl.protocols.ranks import ALONE, Alone
from lightning_mmrl.settings.algorithm import UpdateSettings
from lightning_mmrl.stages.advantages import of_tokens
from lightning_mmrl.stages.experience import Experience
from lightning_mmrl.stages.microbatches import one_batch, scoring_batches
from lightning_mmrl.stages.optimize import (
    Objective,
    accumulate_loss,
    groups_with_gradient,
    plan_minibatches,
    rollout_logprobs,
)
from lightning_mmrl.types.batches import Rollout, Scores
from lightning_mmrl.types.records import Completion

GROUP = 3
WHOLE, GROUP_BY_GROUP, ROW_BY_ROW = Budget(tokens=10**6), Budget(tokens=100), Budget(tokens=1)
REWARDS = torch.tensor([[1.0, 0.0, 2.0], [1.0, 1.0, 1.0], [0.0, 2.0, 2.0], [2.0, 1.0, 0.0]])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return omni.load(omni.build(tmp_path_factory.mktemp("omni")))


@pytest.fixture(scope="module")
def experience(model):
    encoder, _ = model
    prompts = omni.prompts(encoder)
    tokens, mask = omni.ragged_completions(encoder, GROUP * len(prompts.samples))
    completions = tuple(Completion(text="", num_tokens=int(row.sum()), truncated=False) for row in mask)
    rollout = Rollout(
        completion_ids=tokens,
        completion_mask=mask,
        sampler_logprobs=torch.zeros(tokens.shape),
        completions=completions,
        group_size=GROUP,
        policy_version=torch.zeros(len(tokens), dtype=torch.long),
    )
    valid = torch.ones_like(REWARDS, dtype=torch.bool)
    return Experience(
        raw=prompts,
        prompts=prompts,
        rollout=rollout,
        scores=Scores(rewards=REWARDS, valid=valid, components={}, details=()),
        trainable=valid,
        advantages=of_tokens(GroupNormalized()(REWARDS, valid), mask),
    )


def step(policy, experience, *, budget=WHOLE, aggregation=None, live=None, prompts=None):
    policy.zero_grad()
    [minibatch] = plan_minibatches(len(experience.trainable), UpdateSettings(), torch.Generator())
    moves = groups_with_gradient(experience, regularized=False)
    live = [row for row in minibatch if moves[row]] if live is None else live
    totals = accumulate_loss(
        policy,
        experience,
        minibatch,
        scoring_batches(experience, live, budget=budget, ranks=ALONE, prompts=prompts),
        objective=Objective(loss=PPOClip(), aggregation=aggregation or TokenMean()),
        backward=lambda loss: loss.backward(),
    )
    return totals, {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def old_logprobs(policy, experience, budget):
    rows = range(len(experience.trainable))
    return rollout_logprobs(policy, experience, scoring_batches(experience, rows, budget=budget, ranks=ALONE))


def num_passes(policy, run):
    passes = []
    handle = policy.register_forward_hook(lambda *_: passes.append(1))
    try:
        return run(), len(passes)
    finally:
        handle.remove()


@pytest.mark.parametrize("aggregation", [TokenMean(), SequenceMean()])
@pytest.mark.parametrize(("budget", "expected"), [(GROUP_BY_GROUP, 3), (ROW_BY_ROW, 3 * GROUP)])
def test_any_split_into_microbatches_equals_all_at_once(model, experience, aggregation, budget, expected):
    _, policy = model
    together, whole = step(policy, experience, aggregation=aggregation)
    (apart, pieces), passes = num_passes(
        policy, lambda: step(policy, experience, budget=budget, aggregation=aggregation)
    )
    assert passes == expected
    torch.testing.assert_close(apart["loss"], together["loss"], rtol=0, atol=1e-7)
    assert whole.keys() == pieces.keys()
    for name, gradient in whole.items():
        # The stock model computes norms and rotary tables in float32.
        torch.testing.assert_close(pieces[name], gradient, rtol=1e-5, atol=1e-7)


def test_old_logprobs_do_not_depend_on_the_split(model, experience):
    _, policy = model
    whole, single = (old_logprobs(policy, experience, budget) for budget in (WHOLE, ROW_BY_ROW))
    torch.testing.assert_close(single, whole, rtol=0, atol=1e-9)
    assert torch.equal(whole != 0, experience.rollout.completion_mask)


def test_trainable_towers_run_once_with_the_gradient_of_running_them_in_each_microbatch(model, experience):
    _, policy = model
    _, expected = step(policy, experience, budget=GROUP_BY_GROUP)
    runs = []
    handles = [tower.register_forward_hook(lambda *_: runs.append(1)) for tower in policy.media.backbone.towers]
    graph = TowerGraph(policy.media, experience.prompts)
    ready = replace(experience, prompts=graph.prompts)
    _, found = step(policy, ready, budget=ROW_BY_ROW, prompts=graph.leaf)
    assert "model.visual.patch_embed.proj.weight" not in found
    graph.backward()
    found = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    for handle in handles:
        handle.remove()
    assert len(runs) == 2
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


def test_groups_without_signal_are_skipped_exactly_but_counted(model, experience):
    _, policy = model
    assert plan_minibatches(4, UpdateSettings(), torch.Generator()) == [[0, 1, 2, 3]]
    assert groups_with_gradient(experience, regularized=False) == [True, False, True, True]
    assert groups_with_gradient(experience, regularized=True) == [True] * 4
    (_, skipped), passes = num_passes(policy, lambda: step(policy, experience, budget=GROUP_BY_GROUP))
    assert passes == 3
    _, scored = step(policy, experience, live=(0, 1, 2, 3))
    for name, gradient in scored.items():
        torch.testing.assert_close(skipped[name], gradient, rtol=1e-5, atol=1e-7)


def test_the_gradient_is_that_of_the_policy_gradient_theorem(model, experience):
    """At the sampling weights: gradient = -sum_i A_i * grad log p(tokens of i) / number of tokens."""
    _, policy = model
    _, ours = step(policy, experience)
    policy.zero_grad()
    mask = experience.rollout.completion_mask
    logprobs = policy(one_batch(experience)).logprobs
    objective = (experience.advantages * logprobs)[mask].sum() / mask.sum()
    (-objective).backward()
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-5, atol=1e-7)


def test_a_step_raises_the_probability_of_better_completions(model, experience):
    _, policy = model
    before = old_logprobs(policy, experience, WHOLE).sum(-1)
    saved = {name: p.detach().clone() for name, p in policy.named_parameters()}
    _, gradients = step(policy, experience)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name in gradients:
                parameter.sub_(1e-3 * gradients[name])
    change = old_logprobs(policy, experience, WHOLE).sum(-1) - before
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.copy_(saved[name])
    assert (change * experience.advantages[:, 0]).sum() > 0


def test_untrainable_completions_leave_loss_and_denominator(model, experience):
    _, policy = model
    only = torch.zeros_like(experience.trainable)
    only[0, 1] = True
    totals, _ = step(policy, replace(experience, trainable=only))
    assert totals["tokens"].item() == experience.rollout.completion_mask[1].sum().item()
    assert totals["loss"].item() == pytest.approx(-experience.advantages[1, 0].item(), abs=1e-6)


def test_minibatches_cover_every_prompt_once_per_epoch():
    settings = UpdateSettings(num_epochs=3, num_minibatches=2)
    plans = plan_minibatches(4, settings, torch.Generator().manual_seed(0))
    assert len(plans) == 6
    for epoch in range(3):
        rows = [row for plan in plans[2 * epoch : 2 * epoch + 2] for row in plan]
        assert sorted(rows) == [0, 1, 2, 3]
    assert len({tuple(plan) for plan in plans}) > 2
    assert not settings.on_policy


class One(Alone):
    """One of several ranks; the others make more passes, and count nothing."""

    def __init__(self, rank=0, world_size=1, passes=0):
        self.rank, self.world_size, self._passes = rank, world_size, passes
        self.lockstep = passes > 0

    def max(self, value):
        return max(value, self._passes)


@pytest.mark.parametrize(("world_size", "num_minibatches"), [(2, 1), (2, 2), (4, 2), (2, 4), (4, 4)])
def test_ranks_make_the_minibatches_of_one_process(world_size, num_minibatches):
    """In every step the same prompts, wherever they are; also where a rank has none of them."""
    settings = UpdateSettings(num_epochs=2, num_minibatches=num_minibatches)
    size = 8 // world_size
    plans = [
        plan_minibatches(size, settings, torch.Generator().manual_seed(5), One(rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    expected = plan_minibatches(8, settings, torch.Generator().manual_seed(5), One())
    for parts, whole in zip(zip(*plans, strict=True), expected, strict=True):
        together = [rank * size + row for rank, part in enumerate(parts) for row in part]
        assert sorted(together) == sorted(whole)


def test_dealt_prompts_are_in_the_minibatches_of_one_process():
    """Prompts of a rank need not lie side by side in the batch."""
    settings = UpdateSettings(num_epochs=2, num_minibatches=2)
    shares = [[0, 3, 5, 6], [1, 2, 4, 7]]
    plans = [
        plan_minibatches(4, settings, torch.Generator().manual_seed(5), One(rank=rank, world_size=2), share)
        for rank, share in enumerate(shares)
    ]
    expected = plan_minibatches(8, settings, torch.Generator().manual_seed(5), One())
    for parts, whole in zip(zip(*plans, strict=True), expected, strict=True):
        assert sorted(share[row] for share, part in zip(shares, parts, strict=True) for row in part) == sorted(whole)


@pytest.mark.parametrize("live", [(), (0, 2)])
def test_passes_for_other_ranks_change_neither_gradient_nor_statistics(model, experience, live):
    _, policy = model
    found = []
    for ranks in (ALONE, One(passes=6)):
        policy.zero_grad()
        passes = []
        hook = policy.register_forward_hook(lambda *_, seen=passes: seen.append(1))
        totals = accumulate_loss(
            policy,
            experience,
            (0, 1, 2, 3),
            scoring_batches(experience, live, budget=GROUP_BY_GROUP, ranks=ranks),
            objective=Objective(loss=PPOClip(), aggregation=TokenMean(), ranks=ranks),
            backward=torch.Tensor.backward,
        )
        hook.remove()
        found.append((len(passes), totals, [parameter.grad for parameter in policy.parameters()]))
    (few, totals, gradients), (many, same_totals, same_gradients) = found
    assert few < many == 6
    assert same_totals == totals
    for gradient, same in zip(gradients, same_gradients, strict=True):
        if gradient is None:
            assert same is None or not same.any()
        else:
            assert torch.equal(gradient, same)
