"""Every formula written out again in NumPy float64 with loops, from the papers and not from the package."""

import math

import numpy as np
import pytest
import torch

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.advantages.leave_one_out import LeaveOneOut
from lightning_mmrl.algorithms.advantages.reinforce_plus_plus import ReinforcePlusPlusBaseline
from lightning_mmrl.algorithms.losses.aggregation import ConstantLength, SequenceMean, TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.types.batches import LossInputs

SEEDS = range(5)


def drawn_rewards(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(4, 6)), rng.random((4, 6)) < 0.7


def by_group(rewards, valid, formula):
    advantages = np.zeros_like(rewards)
    for row in range(len(rewards)):
        members = [i for i in range(rewards.shape[1]) if valid[row, i]]
        if len(members) >= 2:
            for i in members:
                advantages[row, i] = formula(rewards[row, i], [rewards[row, j] for j in members if j != i])
    return advantages


def standardized(reward, others, eps=1e-4):
    group = [reward, *others]
    mean = math.fsum(group) / len(group)
    variance = math.fsum((x - mean) ** 2 for x in group) / (len(group) - 1)
    return (reward - mean) / (math.sqrt(variance) + eps)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("estimator", "formula"),
    [
        (GroupNormalized(), standardized),
        (GroupNormalized(eps=0.5), lambda reward, others: standardized(reward, others, eps=0.5)),
        (GroupNormalized(std=None), lambda reward, others: reward - np.mean([reward, *others])),
        (LeaveOneOut(), lambda reward, others: reward - np.mean(others)),
    ],
    ids=["normalized", "normalized-eps", "centered", "leave-one-out"],
)
def test_advantages(estimator, formula, seed):
    rewards, valid = drawn_rewards(seed)
    found = estimator(torch.tensor(rewards), torch.tensor(valid)).numpy()
    np.testing.assert_allclose(found, by_group(rewards, valid, formula), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("eps", [1e-4, 0.5])
def test_advantages_over_a_deviation_of_the_step(eps, seed):
    """Of all valid rewards; of the leave-one-out advantages of those that have a sibling; of all centered rewards."""
    rewards, valid = drawn_rewards(seed)
    rewards[0], valid[0] = 7 * rewards[0], np.arange(6) == 2  # one that has no sibling

    def centered(reward, others):
        return reward - np.mean([reward, *others])

    def left_out(reward, others):
        return reward - np.mean(others)

    compared = valid & (valid.sum(1, keepdims=True) > 1)
    for estimator, formula, over in (
        (GroupNormalized(std="batch", eps=eps), centered, rewards[valid]),
        (LeaveOneOut(normalize=True, eps=eps), left_out, by_group(rewards, valid, left_out)[compared]),
        (ReinforcePlusPlusBaseline(eps=eps), centered, by_group(rewards, valid, centered)[valid]),
    ):
        found = estimator(torch.tensor(rewards), torch.tensor(valid)).numpy()
        expected = by_group(rewards, valid, formula) / (np.std(over, ddof=1) + eps)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def drawn_tokens(seed):
    rng = np.random.default_rng(seed)
    logprobs, old = -rng.random((5, 7)) * 3, -rng.random((5, 7)) * 3
    lengths = [7, 1, 4, 0, 6]
    mask = np.array([[c < length for c in range(7)] for length in lengths])
    return logprobs, old, rng.normal(size=5), mask


def surrogate(logprob, old, advantage, low, high):
    ratio = math.exp(logprob - old)
    return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def losses_by_row(seed, low, high):
    logprobs, old, advantages, mask = drawn_tokens(seed)
    return [
        [surrogate(logprobs[n, c], old[n, c], advantages[n], low, high) for c in range(7) if mask[n, c]]
        for n in range(5)
    ]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("aggregation", "formula"),
    [
        (TokenMean(), lambda rows: sum(map(sum, rows)) / sum(map(len, rows))),
        (SequenceMean(), lambda rows: np.mean([sum(row) / len(row) for row in rows])),
        (ConstantLength(max_tokens=9), lambda rows: sum(map(sum, rows)) / (9 * len(rows))),
    ],
    ids=["token", "sequence", "constant"],
)
def test_clipped_loss_and_its_aggregation(aggregation, formula, seed):
    logprobs, old, advantages, mask = (torch.tensor(value) for value in drawn_tokens(seed))
    of_tokens = advantages[:, None].expand(mask.shape)
    inputs = LossInputs(logprobs=logprobs, old_logprobs=old, advantages=of_tokens, completion_mask=mask)
    token_losses = PPOClip(clip_low=0.1, clip_high=0.4)(inputs).token_losses
    found = aggregation.reduce(token_losses, mask, aggregation.denominator(mask)).item()
    counted = [row for row in losses_by_row(seed, 0.1, 0.4) if row]
    assert found == pytest.approx(formula(counted), rel=1e-12)
