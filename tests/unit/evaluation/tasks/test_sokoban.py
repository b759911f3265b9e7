"""Sokoban as a task: which plans are right, by hand."""

import pytest

from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.evaluation.tasks.sokoban import Sokoban
from lightning_mmrl.types.records import Completion, Sample

LEVEL = ["@ $ .", "     "]


def sample(solution="Right, Right, Right", level=LEVEL):
    return Sample(id="q", messages=(), solution=solution, extras={"level": level})


def judged(plan, task=None, of=None):
    text = f"<think>so</think><answer>{plan}</answer>"
    return (task or Sokoban()).judge(of or sample(), Completion(text=text, num_tokens=9, truncated=False))


@pytest.mark.parametrize(
    ("plan", "solved", "as_short", "unparseable"),
    [
        ("Right, Right, Right", 1, 1, 0),
        ("right right right", 1, 1, 0),
        ("Down, Up, Right, Right, Right", 1, 0, 0),
        ("Right, Right, Right, Left", 1, 0, 0),
        ("Right, Right", 0, 0, 0),
        ("Down, Right, Right, Right, Up", 0, 0, 0),
        ("Right three times", 0, 0, 1),
        ("", 0, 0, 1),
    ],
)
def test_plans_by_hand(plan, solved, as_short, unparseable):
    assert judged(plan).scores == {"solved": solved, "as_short": as_short, "unparseable": unparseable}


def test_any_plan_is_right_that_solves_the_level_not_only_the_solution():
    level = ["@  ", " $ ", " . ", "   "]
    plans = ("Right, Down", "Down, Up, Right, Down", "Right, Right, Left, Down")
    assert [judged(plan, of=sample("Right, Down", level)).scores["solved"] for plan in plans] == [1.0, 1.0, 1.0]


def test_a_plan_of_too_many_actions_is_wrong():
    plan = "Down, Up, Right, Right, Right"
    assert [judged(plan, Sokoban(max_actions=most)).scores["solved"] for most in (5, 4)] == [1.0, 0.0]


def test_judgements_keep_plans_in_one_form():
    found = judged("right\nRIGHT")
    assert (found.truth, found.predicted) == ("Right, Right, Right", "Right, Right")


@pytest.mark.parametrize("solution", ["Right, Right", "Right, Right, Jump", "", None])
def test_a_solution_that_does_not_solve_the_level_is_refused(solution):
    with pytest.raises(DataError, match=r"sample 'q' has the solution .*, which does not solve its level; correct"):
        Sokoban().truth(sample(solution))


def test_a_sample_without_a_level_is_refused():
    with pytest.raises(DataError, match="sample 'q' has no level"):
        Sokoban().truth(Sample(id="q", messages=(), solution="Up"))


def test_a_bound_below_one_is_refused():
    with pytest.raises(ConfigError, match="max_actions is 0"):
        Sokoban(max_actions=0)
