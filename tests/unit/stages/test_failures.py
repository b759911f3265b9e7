import pytest
import torch

from lightning_mmrl.errors import RewardError
from lightning_mmrl.protocols.ranks import ALONE, Alone
from lightning_mmrl.stages.failures import failed_components, refuse_failures
from lightning_mmrl.types.batches import Scores
from lightning_mmrl.types.records import Score

GOOD = Score(total=1.0, components={"label": 1.0})


def bad(name):
    return Score(total=0.0, components={}, valid=False, reason=f"{name}: down", failed=name)


def scored(*rows):
    return Scores(
        rewards=torch.tensor([[score.total for score in row] for row in rows]),
        valid=torch.tensor([[score.valid for score in row] for row in rows]),
        components={},
        details=tuple(map(tuple, rows)),
    )


class OfTwo(Alone):
    """The first of two ranks, of which the other one gathers a share that is given."""

    def __init__(self, other):
        self.other = other

    def gather(self, item):
        return [item, (self.other.valid.numel(), failed_components(self.other), ["label: elsewhere"])]


def test_failures_are_counted_by_the_part_that_failed():
    scores = scored([bad("label"), GOOD, bad("label")], [bad("math"), GOOD, bad(None)])
    assert failed_components(scores) == {"label": 2, "math": 1, "other": 1}


@pytest.mark.parametrize("limit", [0.5, 0.75, 1.0])
def test_failures_up_to_the_limit_are_borne(limit):
    half = scored([bad("label"), GOOD], [bad("label"), GOOD])
    refuse_failures(half, limit, ALONE)
    with pytest.raises(RewardError, match="2 of 4"):
        refuse_failures(half, 0.49, ALONE)


def test_more_failures_stop_the_run_with_counts_and_the_first_reason():
    scores = scored([GOOD, bad("math")], [bad("label"), bad("label")])
    sentence = (
        r"3 of 4 scores of an iteration are invalid \(label 2, math 1\), more than rewards.max_invalid_rate 0.5 "
        "allows; the first: math: down; mend the data or the reward, or raise the limit"
    )
    with pytest.raises(RewardError, match=sentence):
        refuse_failures(scores, 0.5, ALONE)


def test_a_limit_of_zero_bears_none_and_of_one_all():
    refuse_failures(scored([GOOD, GOOD]), 0.0, ALONE)
    refuse_failures(scored([bad("label"), bad("label")]), 1.0, ALONE)
    with pytest.raises(RewardError, match="1 of 2"):
        refuse_failures(scored([GOOD, bad("label")]), 0.0, ALONE)


def test_the_rate_is_that_of_all_ranks():
    """A rank with failures goes on if the job bears them, and a rank without stops if it does not."""
    fine, broken = scored([GOOD, GOOD]), scored([bad("label"), bad("label")])
    refuse_failures(broken, 0.5, OfTwo(fine))
    with pytest.raises(RewardError, match=r"2 of 4 .*the first: label: elsewhere"):
        refuse_failures(fine, 0.4, OfTwo(broken))
