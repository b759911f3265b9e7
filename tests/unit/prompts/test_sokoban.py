"""Sokoban in text: levels and plans by hand, rules against an own simulator, shortest plans against all plans."""

import numpy as np
import picture_readers as readers
import pytest

from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.sokoban import MOVES, Level, level_of, read_plan, shortest_plan, write_plan
from lightning_mmrl.types.records import Sample


def random_rows(rng):
    """A board of 3 x 4 with one or two boxes, of which one may be on a target."""
    board = np.full(12, " ")
    cells = rng.permutation(12)
    boxes = int(rng.integers(1, 3))
    board[cells[0]] = "@"
    board[cells[1 : 1 + boxes]] = "$"
    board[cells[3 : 3 + boxes]] = "."
    board[cells[5 : 5 + rng.integers(3)]] = "#"
    if boxes == 2:
        board[cells[1]], board[cells[3]] = "*", " "
    return ["".join(row) for row in board.reshape(3, 4)]


def test_rules_are_those_of_an_own_simulator():
    rng = np.random.default_rng(0)
    solved = 0
    for _ in range(1500):
        rows = random_rows(rng)
        moves = tuple(np.array(list(MOVES))[rng.integers(4, size=rng.integers(1, 40))])
        level = Level.parse(rows)
        assert level.solves(moves) == readers.plays(rows, moves)
        assert level.rows() == rows
        solved += level.solves(moves)
    assert solved > 20


def test_shortest_plans_are_those_among_all_plans():
    rng = np.random.default_rng(1)
    lengths = set()
    for _ in range(300):
        rows = random_rows(rng)
        plan = shortest_plan(Level.parse(rows), 4)
        assert (None if plan is None else len(plan)) == readers.fewest_moves(rows, 4)
        assert plan is None or readers.plays(rows, plan)
        lengths.add(plan and len(plan))
    assert len(lengths) >= 4


@pytest.mark.parametrize(
    ("rows", "moves", "player", "boxes"),
    [
        (["@$ .", "    "], "Right", (0, 1), {(0, 2)}),
        (["@$#.", "    "], "Right", (0, 0), {(0, 1)}),  # a wall stops the box
        (["@$$..", "     "], "Right", (0, 0), {(0, 1), (0, 2)}),  # a second box stops the first
        (["@$.", "   "], "Left", (0, 0), {(0, 1)}),  # the edge is a wall
        ([" @$.", "    "], "Left", (0, 0), {(0, 2)}),  # nothing is pulled
        (["@.", " $", "  "], "Down Down Right Up Up", (1, 1), {(0, 1)}),  # the game ends when it is solved
    ],
)
def test_moves_by_hand(rows, moves, player, boxes):
    last = Level.parse(rows).play(moves.split())[-1]
    assert (last.player, set(last.boxes)) == (player, boxes)


def test_a_level_that_is_solved_already_has_no_moves():
    level = Level.parse(["@*", "  "])
    assert level.play(["Down", "Right"]) == []
    assert level.solves(["Down"])
    assert shortest_plan(level, 3) == ()


@pytest.mark.parametrize(
    ("answer", "plan"),
    [
        ("Left, Right", "Left Right"),
        ("left RIGHT\nUp\tdown", "Left Right Up Down"),
        ("**Left**, Up.", "Left Up"),
        (" Left,Up, ", "Left Up"),
        ("Left; Up", None),
        ("Left then Up", None),
        ("LeftUp", None),
        ("L, U", None),
        ("Left, Forward", None),
        (",", None),
        ("", None),
        ("\u200bLeft", None),
    ],
)
def test_plans_by_hand(answer, plan):
    assert read_plan(answer) == (None if plan is None else tuple(plan.split()))


def test_what_is_written_is_read():
    plan = ("Left", "Up", "Down", "Right", "Right")
    assert read_plan(write_plan(plan)) == plan


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (None, "has no level; give the column 'level'"),
        ([], "has no level"),
        ([1, 2], "has no level"),
        (["@$x."], "the character 'x'"),
        (["$."], "0 players, 1 boxes and 1 targets"),
        (["@@$."], "2 players"),
        (["@$$."], "2 boxes and 1 targets"),
        (["@"], "0 boxes"),
    ],
)
def test_a_level_that_cannot_be_played_is_refused_by_the_samples_id(level, message):
    extras = {} if level is None else {"level": level}
    with pytest.raises(DataError, match=f"sample 'q7'.*{message}"):
        level_of(Sample(id="q7", messages=(), extras=extras))


def test_a_player_may_start_on_a_target():
    level = Level.parse(["+$ ", "   "])
    assert level.targets == {(0, 0)}
    assert level.rows() == ["+$ ", "   "]
    assert level.solves(["Down", "Right", "Right", "Up", "Left"])


def test_a_level_may_be_one_text():
    texts = ["#####\n#@$.#\n#####", ["#####", "#@$.#", "#####"]]
    levels = [level_of(Sample(id="q", messages=(), extras={"level": text})) for text in texts]
    assert levels[0] == levels[1]
