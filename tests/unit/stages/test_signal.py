"""A stage without any signal says so once, with the likely cause."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.stages.signal import SILENT_ITERATIONS, SignalWatch
from lightning_mmrl.stages.stats import RolloutSummary


def outcome(*, label=0.0, truncated=False, valid=True, rewards=None, signal=False):
    """Two groups of two completions."""
    label = torch.as_tensor(label).expand(2, 2)
    return RolloutSummary(
        rewards=label.clone() if rewards is None else rewards,
        valid=torch.full((2, 2), valid),
        components={"label": label},
        has_signal=torch.full((2, 2), signal),
        lengths=torch.ones(4),
        truncated=(truncated,) * 4,
        failed=Counter(),
    )


def said(outcomes, **settings):
    watch = SignalWatch(rewards=RewardSettings(pass_component="label"), **settings)
    return [message for step, each in enumerate(outcomes, start=1) if (message := watch.noted(each, step))]


@pytest.mark.parametrize(
    ("silent", "cause"),
    [
        (outcome(label=1.0), "all answers are right: the task is too easy"),
        (outcome(label=0.0), "all answers are wrong: the task is too hard, the reward cannot read the answers"),
        (outcome(truncated=True), r"100 % of the answers are cut off: raise sampling.max_new_tokens"),
        (outcome(valid=False), "no score is valid: the reward fails on every answer"),
        (outcome(label=[[0.0], [1.0]]), "each group agrees with itself: raise sampling.temperature"),
        (outcome(rewards=torch.tensor([[0.0, 1.0], [1.0, 1.0]])), "the groups whose answers differ are left out"),
    ],
)
def test_the_likely_cause_is_named(silent, cause):
    (message,) = said([silent] * 3 * SILENT_ITERATIONS)
    assert message.startswith(
        f"no group had a signal in {SILENT_ITERATIONS} iterations in a row, so no weight moves; {cause}"
    )


def test_terms_beside_the_advantages_still_move_weights():
    (message,) = said([outcome()] * SILENT_ITERATIONS, regularized=True)
    assert "so only the terms beside the advantages still move the weights" in message


def test_one_signal_in_between_starts_the_count_anew():
    live = replace(outcome(), has_signal=torch.tensor([[False, False], [True, False]]))
    quiet = [outcome()] * (SILENT_ITERATIONS - 1)
    assert said([*quiet, live, *quiet, live]) == []
    assert len(said([*quiet, live, *quiet, outcome()])) == 1


def test_a_stage_that_goes_on_neither_forgets_nor_counts_a_step_twice():
    first = SignalWatch(rewards=RewardSettings(pass_component="label"))
    for step in range(1, SILENT_ITERATIONS):
        assert first.noted(outcome(), step) is None
    second = SignalWatch(rewards=RewardSettings(pass_component="label"))
    second.load_state_dict(first.state_dict())
    assert second.noted(outcome(), SILENT_ITERATIONS - 1) is None
    assert second.noted(outcome(), SILENT_ITERATIONS) is not None
    third = SignalWatch(rewards=RewardSettings(pass_component="label"))
    third.load_state_dict(second.state_dict())
    assert third.noted(outcome(), SILENT_ITERATIONS + 1) is None
