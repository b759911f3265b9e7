"""Sokoban levels: read back from the pixels, solved by an own simulator, in one split each, and not by a blind plan."""

from collections import Counter
from itertools import product

import picture_readers as readers
import pytest

from lightning_mmrl.data.synthetic.sokoban import NUM_LEVELS, SOKOBAN, SOKOBAN_LARGE, Layout, levels_of, sokoban_task
from lightning_mmrl.data.synthetic.task import SPLITS
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.template import media_tags

BLIND = (
    "Left, Up, Down, Right, Up, Right, Down, Right, Up, Left, Left, Down, Down, Right, Down, Left, Left, Up, Left, Up, "
)
BLIND += "Right, Up, Right, Down, Down, Left, Up, Right, Up, Left"
"""A plan of thirty moves that a greedy search found."""


@pytest.fixture(scope="module")
def posed():
    """The problems of the test split with their plans."""
    return [(plan, SOKOBAN.compose(plan)) for plan in SOKOBAN.plan("test")]


def test_pictures_show_the_level_and_the_solution_is_as_short_as_the_label_says(posed):
    for plan, problem in posed:
        assert readers.level_in(problem.signal) == problem.facts["level"]
        moves = tuple(problem.answer.split(", "))
        assert readers.plays(problem.facts["level"], moves)
        assert len(moves) == problem.facts["moves"] == int(plan.label)
        assert media_tags(problem.question) == ("image",)


@pytest.mark.slow
def test_no_shorter_plan_solves_a_level(posed):
    for _, problem in posed[:80]:
        assert readers.fewest_moves(problem.facts["level"], 4) == problem.facts["moves"]


def test_thoughts_name_the_places(posed):
    for _, problem in posed:
        board = "".join(problem.facts["level"])
        places = [board.index(each) + 1 for each in "@$."]
        assert problem.thought == "player {} box {} goal {}".format(*places)


def test_every_number_of_moves_occurs_equally_often():
    for split in SPLITS:
        counts = Counter(plan.label for plan in SOKOBAN.plan(split))
        assert set(counts) == set("1234")
        assert len(set(counts.values())) == 1


def test_no_level_is_in_two_splits_or_twice_in_a_held_out_one(posed):
    levels = {
        split: [tuple(level.rows()) for moves in range(1, 5) for level, _ in levels_of(Layout(), moves, split)]
        for split in ("train", "validation", "test")
    }
    assert {split: len(found) for split, found in levels.items()} == {"train": 600, "validation": 160, "test": 200}
    assert {split: 4 * number for split, number in NUM_LEVELS.items()} == {
        split: len(levels[split]) for split in levels
    }
    assert len(set().union(*levels.values())) == 960
    assert levels_of(Layout(), 2, "train") == levels_of(Layout(), 2, "cold_start")
    assert Counter(tuple(problem.facts["level"]) for _, problem in posed) == Counter(levels["test"])


def test_another_seed_orders_the_same_levels_otherwise(posed):
    other = [SOKOBAN.compose(plan) for plan in SOKOBAN.plan("test", seed=1)]
    this = [problem for _, problem in posed]
    assert {tuple(each.facts["level"]) for each in other} == {tuple(each.facts["level"]) for each in this}
    assert [each.facts["level"] for each in other] != [each.facts["level"] for each in this]
    assert SOKOBAN.compose(posed[0][0]).signal.tobytes() == this[0].signal.tobytes()


def test_a_plan_that_never_looks_solves_a_third_of_the_levels_with_four_moves_and_most_with_thirty(posed):
    """The ceilings that docs/data.md states."""
    levels = [problem.facts["level"] for _, problem in posed]
    best = max(sum(readers.plays(level, plan) for level in levels) for plan in product(readers.STEPS, repeat=4))
    assert best / len(levels) == 0.32
    long = tuple(BLIND.split(", "))
    assert len(long) == 30
    assert sum(readers.plays(level, long) for level in levels) / len(levels) > 0.65


def test_larger_levels_have_more_tiles():
    plan = SOKOBAN_LARGE.plan("test", scale=0.1)[0]
    problem = SOKOBAN_LARGE.compose(plan)
    assert problem.signal.shape == (112, 112, 3)
    assert readers.level_in(problem.signal) == problem.facts["level"]
    assert readers.plays(problem.facts["level"], tuple(problem.answer.split(", ")))


def test_a_layout_with_too_few_levels_is_refused(monkeypatch):
    monkeypatch.setattr("lightning_mmrl.data.synthetic.sokoban._MAX_DRAWS", 300)
    task = sokoban_task("few", Layout(walls=0))
    with pytest.raises(DataError, match=r"too few levels by the number of moves: .*240 of each are needed"):
        task.compose(task.plan("test")[0])


def test_readers_tell_levels_apart(posed):
    """The negative control: a mirrored picture is another level, and a solution needs its last move."""
    mirrored = [readers.level_in(problem.signal[:, ::-1]) for _, problem in posed[:20]]
    assert mirrored == [[row[::-1] for row in problem.facts["level"]] for _, problem in posed[:20]]
    for _, problem in posed[:20]:
        assert not readers.plays(problem.facts["level"], tuple(problem.answer.split(", ")[:-1]))
