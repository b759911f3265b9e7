"""The scores of an iteration as tensors, in one type whatever the model computes in."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from lightning_mmrl.types.batches import Rollout, Scores
from lightning_mmrl.types.records import Completion, Sample, Score

REWARD_TYPE = torch.float32
"""Type of rewards; under precision 16-true torch's default would be float16, where squares overflow above 65,504."""

SQUARES = 2**20
"""How many squares of the largest accepted reward can be summed without overflow, as in the deviation of a batch."""

LARGEST = math.sqrt(torch.finfo(REWARD_TYPE).max / SQUARES)
"""Largest magnitude of an accepted reward, 1.8e16."""


class RewardSource(Protocol):
    """Scores the G completions of each of B samples; more than `max_invalid_rate` failures stop the stage."""

    @property
    def max_invalid_rate(self) -> float: ...

    def score(self, samples: Sequence[Sample], completions: Sequence[Sequence[Completion]]) -> list[list[Score]]: ...


def score_rollout(rewards: RewardSource, samples: Sequence[Sample], rollout: Rollout) -> Scores:
    """Rewards [B, G] of the completions of B samples; the score of a failed verifier is invalid, not zero."""
    return score_tensors(rewards.score(samples, completion_groups(rollout)), rollout.completion_ids.device)


def completion_groups(rollout: Rollout) -> list[Sequence[Completion]]:
    """The G completions of each prompt."""
    size = rollout.group_size
    return [rollout.completions[first : first + size] for first in range(0, len(rollout.completions), size)]


def score_tensors(table: Sequence[Sequence[Score]], device: torch.device) -> Scores:
    """Returns rewards, components and validity as tensors [B, G], after `finite_scores`.

    A component that a score lacks is 0.

    >>> score_tensors([[Score(total=0.5, components={"label": 0.5})]], torch.device("cpu")).rewards
    tensor([[0.5000]])
    """
    table = finite_scores(table)
    names = dict.fromkeys(name for row in table for score in row for name in score.components)

    def grid(pick: Callable[[Score], float | bool], dtype: torch.dtype = REWARD_TYPE) -> torch.Tensor:
        values = torch.tensor([[pick(score) for score in row] for row in table], dtype=dtype)
        return values.to(device, non_blocking=True)

    return Scores(
        rewards=grid(lambda score: score.total),
        valid=grid(lambda score: score.valid, torch.bool),
        components={name: grid(lambda score, n=name: score.components.get(n, 0.0)) for name in names},
        details=tuple(tuple(row) for row in table),
    )


def finite_scores(table: Sequence[Sequence[Score]]) -> list[list[Score]]:
    """Returns the scores; a score that is too large for `REWARD_TYPE` becomes invalid.

    Rewards are squared and summed in that type, where a finite number such as 1e39 may be infinite. As with any failure
    of a verifier, the completion leaves its group.
    """
    return [[_within(score) for score in row] for row in table]


def _within(score: Score) -> Score:
    # The comparison is False for NaN as well.
    if not score.valid or all(abs(value) <= LARGEST for value in (score.total, *score.components.values())):
        return score
    part = next((name for name, value in score.components.items() if not abs(value) <= LARGEST), None)
    value = score.total if part is None else score.components[part]
    name = str(REWARD_TYPE).removeprefix("torch.")
    reason = f"{part or 'the total'}: {value:g} is too large for {name}; its magnitude must be at most {LARGEST:.2g}"
    return replace(score, total=0.0, components={}, valid=False, reason=reason, failed=part)
