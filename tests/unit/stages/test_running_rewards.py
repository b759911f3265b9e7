"""Rewards normalized by running moments: NumPy in float64, ranks, repeated iterations and states."""

import numpy as np
import pytest
import torch

from lightning_mmrl.ops.moments import Moments
from lightning_mmrl.protocols.ranks import ALONE, Alone
from lightning_mmrl.stages.running_rewards import RunningRewards

VALID = torch.tensor([[True, True, True], [True, False, True]])


def drawn(seed):
    return torch.randn(2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(iterations, running=None, ranks=ALONE):
    running = RunningRewards() if running is None else running
    return running, [running.normalized(drawn(number), VALID, iteration=number, ranks=ranks) for number in iterations]


def written_out(number):
    """The rewards of an iteration by the mean and deviation of all valid rewards up to it."""
    rewards = [drawn(each).numpy() for each in range(1, number + 1)]
    so_far = np.concatenate([each[VALID.numpy()] for each in rewards])
    return np.where(VALID.numpy(), (rewards[-1] - so_far.mean()) / so_far.std(), 0.0)


def test_rewards_are_normalized_by_all_valid_ones_so_far():
    running, found = run((1, 2, 3))
    everything = np.concatenate([drawn(number)[VALID].numpy() for number in (1, 2, 3)])
    assert running.stats() == pytest.approx(
        {"rollout/running_reward_mean": everything.mean(), "rollout/running_reward_std": everything.std()}, rel=1e-12
    )
    for number, each in enumerate(found, 1):
        np.testing.assert_allclose(each.numpy(), written_out(number), rtol=1e-9, atol=1e-12)
    assert not np.allclose(found[2].numpy(), written_out(1)), "negative control: of the first iteration alone"
    assert found[0][1, 1] == 0.0


def test_equal_rewards_become_zero():
    running = RunningRewards()
    same = running.normalized(torch.ones(2, 3), VALID, iteration=1, ranks=ALONE)
    assert same.tolist() == [[0.0] * 3] * 2
    assert running.stats() == {"rollout/running_reward_mean": 1.0, "rollout/running_reward_std": 0.0}


def test_an_iteration_without_valid_rewards_changes_nothing():
    running, _ = run((1,))
    before = running.moments
    none = running.normalized(drawn(2), torch.zeros_like(VALID), iteration=2, ranks=ALONE)
    assert running.moments == before
    assert not none.any()


def test_an_iteration_that_is_repeated_counts_once():
    """As after an interruption between scores and update; negative control: moments that forget what was before."""
    straight, expected = run((1, 2, 3))
    repeated, found = run((1, 2, 2, 3))
    assert torch.equal(found[-1], expected[-1])
    assert repeated.moments == straight.moments
    twice = RunningRewards()
    run((1, 2), twice)
    twice.before = twice.moments
    run((2, 3), twice)
    assert twice.moments != straight.moments


@pytest.mark.parametrize("again", [False, True])
def test_a_state_continues_bit_for_bit(again):
    """Saved after iteration 2, or in the midst of it; negative control: without the state."""
    straight, expected = run((1, 2, 3))
    first, _ = run((1, 2))
    second = RunningRewards()
    second.load_state_dict(first.state_dict())
    _, found = run((2, 3) if again else (3,), second)
    assert torch.equal(found[-1], expected[-1])
    assert second.state_dict() == straight.state_dict()
    _, lost = run((3,))
    assert not torch.equal(lost[-1], expected[-1])


class _Half(Alone):
    """One of two ranks; the other one has the second row."""

    world_size = 2

    def __init__(self, rank, everyone):
        self.rank, self._everyone = rank, everyone

    def gather(self, item):
        return [((), *columns) for columns in self._everyone]


def test_ranks_agree_and_have_the_moments_of_one_process():
    """Bit for bit; negative control: a rank that counts its own rewards alone."""
    alone, whole = RunningRewards(), []
    halves, parts = [RunningRewards(), RunningRewards()], []
    for number in (1, 2):
        rewards = drawn(number)
        whole.append(alone.normalized(rewards, VALID, iteration=number, ranks=ALONE))
        everyone = [(rewards[row : row + 1], VALID[row : row + 1]) for row in (0, 1)]
        parts.append(
            torch.cat(
                [
                    half.normalized(*own, iteration=number, ranks=_Half(rank, everyone))
                    for rank, (half, own) in enumerate(zip(halves, everyone, strict=True))
                ]
            )
        )
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))
    assert halves[0].state_dict() == halves[1].state_dict() == alone.state_dict()
    own = RunningRewards()
    own.normalized(drawn(1)[:1], VALID[:1], iteration=1, ranks=ALONE)
    assert own.moments != Moments() != halves[0].moments
    assert own.moments != halves[0].before
