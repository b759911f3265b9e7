"""PPO with a critic against its formulas written out in plain loops over single tokens, in float64.

TRL 1.16.0 has no PPO any more, so that there is nothing to compare with there.
"""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from step_cases import ROW_BY_ROW, WHOLE, TablePolicy, drawn, experience_of, preset

from lightning_mmrl.algorithms.losses.value_clip import ValueClip
from lightning_mmrl.ops.gae import generalized_advantages
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.settings.algorithm import CriticSettings
from lightning_mmrl.stages.microbatches import scoring_batches
from lightning_mmrl.stages.optimize import Objective, accumulate_loss
from lightning_mmrl.stages.values import (
    accumulate_value_loss,
    score_values,
    token_rewards,
    value_stats,
    whitened,
    with_advantages,
)

SIZES = (1, 2, 4, 8)
EXACT = {"rtol": 1e-9, "atol": 1e-12}
SETTINGS = CriticSettings(gamma=0.9, gae_lambda=0.7)


def eq_16(rewards, values, gamma, gae_lambda):
    """Advantages of one completion: a sum over all later errors for each token, which is quadratic in its length."""
    following = [*values, 0.0][1:]
    errors = [r + gamma * after - v for r, after, v in zip(rewards, following, values, strict=True)]
    return [
        math.fsum((gamma * gae_lambda) ** (k - t) * errors[k] for k in range(t, len(errors)))
        for t in range(len(errors))
    ]


def drawn_tokens(seed, rows=5, width=7):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rows, width, generator=generator, dtype=torch.float64)
    lengths = torch.randint(0, width + 1, (rows,), generator=generator)
    lengths[0] = width
    return rewards, values, torch.arange(width) < lengths[:, None]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_advantages_are_the_sum_of_equation_16(seed, gamma, gae_lambda):
    rewards, values, mask = drawn_tokens(seed)
    found, returns = generalized_advantages(rewards, values, mask, gamma=gamma, gae_lambda=gae_lambda)
    expected = torch.zeros_like(found)
    for row, length in enumerate(mask.sum(-1).tolist()):
        own = eq_16(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, gae_lambda)
        expected[row, :length] = torch.tensor(own, dtype=torch.float64)
    torch.testing.assert_close(found, expected, **EXACT)
    torch.testing.assert_close(returns, torch.where(mask, expected + values, 0.0), **EXACT)
    assert not found[~mask].any()
    assert not returns[~mask].any()


def test_numbers_by_hand():
    """Gamma 0.5, lambda 0.5: errors 1 + 0.5 * 4 - 2 = 1 and 3 - 4 = -1; the first advantage is 1 - 0.25."""
    rewards, values = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 4.0]])
    found = generalized_advantages(rewards, values, torch.ones(1, 2, dtype=torch.bool), gamma=0.5, gae_lambda=0.5)
    assert found[0].tolist() == [[0.75, -1.0]]
    assert found[1].tolist() == [[2.75, 3.0]]


@pytest.mark.parametrize("seed", range(3))
def test_at_lambda_one_it_is_the_reward_to_go_minus_the_value_and_at_zero_the_error_of_one_step(seed):
    rewards, values, mask = drawn_tokens(seed)
    to_go = torch.where(mask, rewards, 0.0).flip(-1).cumsum(-1).flip(-1)
    found, returns = generalized_advantages(rewards, values, mask, gamma=1.0, gae_lambda=1.0)
    torch.testing.assert_close(found, torch.where(mask, to_go - values, 0.0), **EXACT)
    torch.testing.assert_close(returns, torch.where(mask, to_go, 0.0), **EXACT)
    following = torch.zeros_like(values)
    following[:, :-1] = torch.where(mask, values, 0.0)[:, 1:]
    found, _ = generalized_advantages(rewards, values, mask, gamma=0.8, gae_lambda=0.0)
    torch.testing.assert_close(found, torch.where(mask, rewards + 0.8 * following - values, 0.0), **EXACT)


VALUES = [
    # value, old value, return, loss, gradient; the clip is 0.2
    (1.1, 1.0, 2.0, 0.405, -0.9),  # within the clip
    (1.5, 1.0, 2.0, 0.32, 0.0),  # moved by more than the clip towards the return: no more pay
    (0.5, 1.0, 2.0, 1.125, -1.5),  # moved away from it: the whole error
    (2.9, 1.0, 2.0, 0.405, 0.9),  # far beyond the return: the larger error is its own
    (1.0, 1.0, 2.0, 0.5, -1.0),
]


@pytest.mark.parametrize(("value", "old", "target", "loss", "gradient"), VALUES)
def test_value_losses_by_hand(value, old, target, loss, gradient):
    values = torch.tensor([[value, math.nan]], dtype=torch.float64, requires_grad=True)
    others = [torch.tensor([[other, math.nan]], dtype=torch.float64) for other in (old, target)]
    found, clipped = ValueClip(clip=0.2)(values, *others, torch.tensor([[True, False]]))
    found.sum().backward()
    assert found.tolist() == [[pytest.approx(loss), 0.0]]
    assert values.grad.tolist() == [[pytest.approx(gradient), 0.0]]
    assert clipped.tolist() == [[gradient == 0, False]]


def test_without_a_clip_the_value_loss_is_the_squared_error():
    values = torch.tensor([[1.5, 3.0]], requires_grad=True)
    found, clipped = ValueClip(clip=None)(values, torch.zeros(1, 2), torch.full((1, 2), 2.0), torch.ones(1, 2).bool())
    assert found.tolist() == [[0.125, 0.5]]
    assert not clipped.any()


class TableCritic:
    """Says what a table says; a token's id is the row that it stands in."""

    def __init__(self, values):
        self.values = values.clone().requires_grad_()

    def __call__(self, batch):
        return torch.where(batch.completion_mask, self.values[batch.completion_ids[:, 0]], 0.0)


def case(seed, size):
    """A table, values at the rollout and values now."""
    table = drawn(seed, size)
    generator = torch.Generator().manual_seed(seed + 77)
    old, drift = torch.randn(2, *table.mask.shape, generator=generator, dtype=torch.float64)
    return table, old, old + 0.4 * drift


def taken(table, old_values, new_values, *, budget=WHOLE, settings=SETTINGS, on_policy=False, drop=True, **change):
    """Statistics and gradients by log-probabilities and values of one step, as PPO takes it."""
    algorithm = preset("ppo")
    experience = experience_of(table)
    if drop:
        experience = replace(experience, trainable=table.valid & ~table.truncated)
    rows = tuple(range(len(table.rewards)))
    batches = partial(scoring_batches, budget=budget, ranks=ALONE)
    values = score_values(TableCritic(old_values), experience, batches(experience, rows))
    rewards = token_rewards(experience, algorithm.kl, algorithm.kl.settings.coefficient)
    experience = with_advantages(experience, rewards, values, settings=settings, ranks=ALONE)
    experience = replace(experience, old_logprobs=None if on_policy else table.old, **change)
    policy, critic = TablePolicy(table.logprobs, table.entropy), TableCritic(new_values)
    backward = torch.Tensor.backward
    totals = accumulate_loss(
        policy,
        experience,
        rows,
        batches(experience, rows),
        objective=Objective(loss=algorithm.loss, aggregation=algorithm.aggregation, kl=algorithm.kl),
        backward=backward,
    )
    stats = accumulate_value_loss(
        critic,
        experience,
        rows,
        batches(experience, rows),
        loss=ValueClip(clip=settings.value_clip),
        ranks=ALONE,
        backward=backward,
    )
    return {
        "loss": totals["loss"].item(),
        "value_loss": stats["value_loss"],
        "value_clip_fraction": stats["value_clip_fraction"],
        "policy": policy.logprobs.grad,
        "critic": critic.values.grad,
        "experience": experience,
    }


def written_out(table, old_values, new_values, *, settings=SETTINGS, on_policy=False, drop=True, **wrong):
    """The same from the papers; `wrong` makes it another method."""
    new = table.logprobs.clone().requires_grad_()
    now = new_values.clone().requires_grad_()
    counted = (table.valid & ~table.truncated if drop else table.valid).flatten().tolist()
    lengths = table.mask.sum(-1).tolist()
    tokens = []
    for row in [row for row, counts in enumerate(counted) if counts]:
        rewards = [-1e-3 * (table.old[row, c] - table.reference[row, c]).item() for c in range(lengths[row])]
        rewards[0 if wrong.get("reward_first") else -1] += table.rewards.flatten()[row].item()
        values = old_values[row, : lengths[row]].tolist()
        advantages = eq_16(rewards, values, settings.gamma, settings.gae_lambda)
        tokens += [(row, c, advantages[c], advantages[c] + values[c]) for c in range(lengths[row])]
    center = math.fsum(advantage for *_, advantage, _ in tokens) / len(tokens)
    spread = math.sqrt(math.fsum((advantage - center) ** 2 for *_, advantage, _ in tokens) / len(tokens))
    loss = value_loss = torch.zeros((), dtype=torch.float64)
    for row, c, advantage, target in tokens:
        weight = (advantage - center) / spread if settings.whiten else advantage
        before = new[row, c].detach() if on_policy else table.old[row, c]
        ratio = (new[row, c] - before).exp()
        bounded = min(max(ratio.item(), 0.8), 1.2)
        loss = loss - (bounded * weight if bounded * weight < ratio.item() * weight else ratio * weight)
        error, moved = now[row, c] - target, (now[row, c] - old_values[row, c]).item()
        near = old_values[row, c].item() + min(max(moved, -0.2), 0.2) - target
        clips = near**2 > error.item() ** 2 and not wrong.get("no_value_clip")
        value_loss = value_loss + (near**2 if clips else error**2) / 2
    (loss / len(tokens)).backward()
    (value_loss / len(tokens)).backward()
    return {
        "loss": loss.item() / len(tokens),
        "value_loss": value_loss.item() / len(tokens),
        "policy": new.grad,
        "critic": now.grad,
    }


def assert_same(found, expected):
    for name in ("loss", "value_loss"):
        assert found[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-12)
    for name in ("policy", "critic"):
        torch.testing.assert_close(found[name], expected[name], **EXACT)


@pytest.mark.parametrize("drop", [True, False], ids=["truncated-out", "truncated-in"])
@pytest.mark.parametrize("size", SIZES)
def test_an_update_is_that_of_the_papers(size, drop):
    """Ragged, invalid and truncated completions; also in microbatches of single completions."""
    for seed in range(3):
        given = case(seed, size)
        expected = written_out(*given, drop=drop)
        found = taken(*given, drop=drop)
        assert_same(found, expected)
        assert_same(taken(*given, drop=drop, budget=ROW_BY_ROW), expected)
        assert min(expected["policy"].abs().max(), expected["critic"].abs().max()) > 1e-4
        assert 0 < found["value_clip_fraction"] < 1
        left = (given[0].valid & ~given[0].truncated if drop else given[0].valid).reshape(-1, 1) & given[0].mask
        assert not found["policy"][~left].any()
        assert not found["critic"][~left].any()


def test_another_method_does_not_fit():
    """The negative control: each of these errors shows in loss or gradient."""
    given = case(0, 4)
    found = taken(*given)
    for wrong in ({"reward_first": True}, {"no_value_clip": True}, {"drop": False}):
        with pytest.raises(AssertionError):
            assert_same(found, written_out(*given, **wrong))
    for name, value in {"gamma": 0.91, "gae_lambda": 0.71, "whiten": False}.items():
        with pytest.raises(AssertionError):
            assert_same(found, written_out(*given, settings=replace(SETTINGS, **{name: value})))


@pytest.mark.parametrize("size", SIZES)
def test_at_ratio_one_the_gradient_is_that_of_reinforce_with_the_tokens_advantages(size):
    given = case(5, size)
    found = taken(*given, on_policy=True)
    experience = found["experience"]
    count = (experience.advantages != 0).sum()
    torch.testing.assert_close(found["policy"], -experience.advantages / count, **EXACT)
    assert_same(found, written_out(*given, on_policy=True))


def test_a_critic_at_the_rollout_has_the_gradient_of_the_plain_squared_error():
    table, old, _ = case(1, 4)
    found = taken(table, old, old)
    experience = found["experience"]
    mask = table.mask & (table.valid & ~table.truncated).reshape(-1, 1)
    expected = torch.where(mask, old - experience.returns, 0.0) / mask.sum()
    torch.testing.assert_close(found["critic"], expected, **EXACT)
    assert found["value_clip_fraction"] == 0


def test_a_completion_has_a_signal_if_any_of_its_tokens_has_an_advantage():
    table, old, new = case(2, 4)
    experience = taken(table, old, new)["experience"]
    per_token = experience.advantages.unflatten(0, (-1, 4))
    assert torch.equal(experience.has_signal, (per_token != 0).any(-1))
    assert torch.equal(experience.has_signal, experience.trainable)
    silent = replace(experience, advantages=torch.zeros_like(experience.advantages))
    assert not silent.has_signal.any()


def test_whitened_advantages_have_mean_zero_and_variance_one_over_the_tokens_that_count():
    _, values, mask = drawn_tokens(3)
    found = whitened(values, mask, ALONE)
    assert found[mask].mean().item() == pytest.approx(0, abs=1e-12)
    assert found[mask].square().mean().item() == pytest.approx(1, rel=1e-12)
    assert not found[~mask].any()
    constant = whitened(torch.full((3, 5), 0.1), torch.ones(3, 5, dtype=torch.bool), ALONE)
    assert not constant.any()


def test_the_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant_one():
    table, old, _ = case(0, 4)
    experience = taken(table, old, old)["experience"]
    stats = value_stats(replace(experience, old_values=experience.returns), ALONE)
    assert stats["rollout/explained_variance"] == pytest.approx(1)
    assert stats["rollout/value_mean"] == pytest.approx(stats["rollout/return_mean"])
    mask = table.mask & experience.trainable.reshape(-1, 1)
    constant = torch.where(mask, torch.full_like(old, 0.3), 0.0)
    assert value_stats(replace(experience, old_values=constant), ALONE)["rollout/explained_variance"] == pytest.approx(
        0, abs=1e-12
    )
    returns = experience.returns[mask]
    error = returns - old[mask]
    expected = 1 - error.var(correction=0) / returns.var(correction=0)
    assert value_stats(experience, ALONE)["rollout/explained_variance"] == pytest.approx(expected.item())
    same = replace(experience, returns=constant)
    assert "rollout/explained_variance" not in value_stats(same, ALONE)
