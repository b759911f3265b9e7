"""Rewards are float32 whatever the model computes in; one that is too large for that is a failed verifier."""

import pytest
import torch

from lightning_mmrl.ops.groups import group_std
from lightning_mmrl.stages.scores import LARGEST, finite_scores, score_tensors
from lightning_mmrl.types.records import Score

NAN, INF = float("nan"), float("inf")


def score(total, **components):
    return Score(total=total, components=components)


GOOD = score(1.0, label=1.0)
FAILED = Score(total=0.0, components={}, valid=False, reason="math: down", failed="math")


@pytest.mark.parametrize(
    ("wrong", "reason", "failed"),
    [
        (score(1e39, label=1e39), "label: 1e+39 is too large for float32", "label"),
        (score(-1e39, label=-1e39), "label: -1e+39 is too large for float32", "label"),
        (score(1e20, label=1e20), "label: 1e+20 is too large for float32", "label"),  # its square is
        (score(1e39, label=1.0), "the total: 1e+39 is too large for float32", None),
        (score(1.0, label=1.0, length=1e39), "length: 1e+39 is too large for float32", "length"),
        (score(NAN, label=1.0), "the total: nan is too large for float32", None),
        (score(INF, label=1.0), "the total: inf is too large for float32", None),
    ],
)
def test_a_reward_that_is_too_large_is_a_failed_verifier(wrong, reason, failed):
    ((good, bad),) = finite_scores([[GOOD, wrong]])
    assert good == GOOD
    assert (bad.valid, bad.total, bad.failed) == (False, 0.0, failed)
    assert bad.reason.startswith(reason)


@pytest.mark.parametrize("value", [1e16, -1e16, LARGEST, 70_000.0])
def test_a_reward_within_its_type_stays_what_it_is(value):
    """Also one that failed before: its reason is the first one."""
    row = [score(value, label=value), FAILED]
    assert finite_scores([row]) == [row]


def test_the_largest_reward_has_finite_statistics():
    """As many of them as one batch may have: the deviation is not infinite, where every advantage would be zero."""
    rewards = torch.full((1, 4096), LARGEST)
    rewards[0, ::2] *= -1
    assert group_std(rewards, torch.ones_like(rewards, dtype=torch.bool)).isfinite()
    assert group_std(rewards * 1e4, torch.ones_like(rewards, dtype=torch.bool)).isinf()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rewards_do_not_depend_on_the_type_that_the_model_computes_in(dtype):
    """Lightning makes it torch's default in a training step."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = score_tensors([[GOOD, score(70_000.5, length=1e39), score(70_000.5)]], torch.device("cpu"))
    finally:
        torch.set_default_dtype(before)
    assert found.rewards.dtype == found.components["label"].dtype == torch.float32
    assert found.rewards.tolist() == [[1.0, 0.0, 70_000.5]]
    assert found.valid.tolist() == [[True, False, True]]
    assert found.components["label"].tolist() == [[1.0, 0.0, 0.0]]
