"""Rewards for Sokoban plans: each term of LMM-R1's reward against a derivation of its own."""

import math
from itertools import product

import numpy as np
import pytest

from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.rewards.sokoban import SokobanReturn, SokobanSolved, action_bonus
from lightning_mmrl.types.records import Completion, Sample

ROWS = ["#######", "#@ $ .#", "#     #", "#######"]
SOLUTION = "Right, Right, Right"
STEPS = {"Left": -1, "Right": 1, "Up": 0, "Down": 0}


def sample(rows=ROWS):
    return Sample(id="q7", messages=(), solution=SOLUTION, extras={"level": rows})


def completion(plan, thought="so"):
    text = f"<think>{thought}</think><answer>{plan}</answer>"
    return Completion(text=text, num_tokens=9, truncated=False)


def published(plan, thought="so", rows=ROWS):
    return SokobanReturn()(sample(rows), completion(plan, thought))


@pytest.mark.parametrize(
    ("plan", "value"),
    [
        (SOLUTION, 1.0),
        ("right RIGHT, Right", 1.0),
        ("Up, Right, Right, Right, Left", 1.0),  # any plan, and moves after the end do not matter
        ("Down, Up, Right, Right, Right, Left, Left", 0.0),  # more than six actions
        ("Right, Right", 0.0),
        ("Right, Right, Right, Jump", 0.0),
        ("", 0.0),
    ],
)
def test_solved(plan, value):
    assert SokobanSolved(max_actions=6)(sample(), completion(plan)) == value


def test_solved_needs_an_answer_in_tags_but_no_valid_format():
    for text, value in ((SOLUTION, 0.0), (f"<answer>{SOLUTION}</answer>", 1.0)):
        assert SokobanSolved()(sample(), Completion(text=text, num_tokens=9, truncated=False)) == value


@pytest.mark.parametrize(
    ("plan", "best"),
    [
        (SOLUTION, -0.1 * 3 + 1 + 10),
        ("Up", -0.1),
        ("Left, Left, Left", -0.1),  # the best is after the first action
        ("Right, Right", -0.1),
        (f"{SOLUTION}, Left, Left", -0.1 * 3 + 1 + 10),  # the game has ended
    ],
)
def test_the_best_return_by_hand(plan, best):
    num_actions = len(plan.split(","))
    assert published(plan) == pytest.approx(best + 0.5 + 0.05 * num_actions + 0.001, abs=1e-12)


def test_a_box_that_leaves_its_target_costs_one():
    rows = ["@* ", ".$ ", "   "]
    # The first move pushes the box off its target: -0.1 - 1. Nothing after it can be better than it was.
    assert published("Right", rows=rows) == pytest.approx(-1.1 + 0.5 + 0.05 + 0.001, abs=1e-12)
    # Two boxes: the first on its target gives 1 - 0.1 at once, and the end 10 more.
    rows = ["@$. ", " $. ", "    "]
    first, both = -0.1 + 1, -0.1 * 4 + 2 + 10
    assert published("Right", rows=rows) == pytest.approx(first + 0.5 + 0.05 + 0.001, abs=1e-12)
    assert published("Right, Left, Down, Right", rows=rows) == pytest.approx(both + 0.5 + 0.2 + 0.001, abs=1e-12)


def test_the_best_return_is_that_of_a_loop_over_prefixes_for_all_short_plans():
    """The level is a line, so that an own simulator needs only the two places."""
    for plan in product(STEPS, repeat=5):
        player, box, total, sums = 0, 2, 0.0, []
        for move in plan:
            total -= 0.1
            ahead = player + STEPS[move]
            if STEPS[move] and 0 <= ahead <= 4 and not (ahead == box and not 0 <= box + STEPS[move] <= 4):
                box += STEPS[move] * (ahead == box)
                player = ahead
            if box == 4:
                sums.append(total + 11)
                break
            sums.append(total)
        expected = max(sums) + 0.5 + 0.25 + 0.001
        assert published(", ".join(plan), rows=["@ $ ."]) == pytest.approx(expected, abs=1e-12)


def test_only_the_first_fifty_actions_are_played():
    waiting = ["Up"] * 48
    assert published(", ".join([*waiting, *SOLUTION.split(", ")])) < 2
    assert published(", ".join([*waiting[:-1], *SOLUTION.split(", ")])) > 6
    assert SokobanReturn(max_actions=51)(sample(), completion(", ".join([*waiting, *SOLUTION.split(", ")]))) > 6


@pytest.mark.parametrize("num_actions", [1, 5, 19, 20, 21, 35, 50, 80])
def test_the_bonus_for_actions_has_a_slope_of_a_twentieth_and_then_falls_with_the_square(num_actions):
    expected = num_actions / 20 if num_actions <= 20 else 1 - math.pow((num_actions - 20) / 30, 2) / 5
    assert action_bonus(num_actions) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("num_words", "bonus"), [(1, 0.001), (7, 0.007), (199, 0.199), (200, 0.2), (500, 0.2)])
def test_the_bonus_for_words_of_the_thought(num_words, bonus):
    one = published("Up")
    assert published("Up", "word " * num_words) - one == pytest.approx(bonus - 0.001, abs=1e-12)


@pytest.mark.parametrize(
    ("plan", "repeated"),
    [
        ("Up Up Up Up Up Up Up", False),  # seven: the four overlap
        ("Up Up Up Up Up Up Up Up", True),
        ("Up Down Left Left Up Down Left Left", True),
        ("Up Down Left Left Down Up Down Left Left", True),
        ("Up Down Left Up Down Left", False),
        ("Up Down Left Left Up Down Left Down", False),
    ],
)
def test_a_repeated_run_of_four_actions_costs_a_fifth_once(plan, repeated):
    moves = plan.split()
    played = 0.5 - 0.1 + len(moves) / 20 + 0.001
    assert published(", ".join(moves)) == pytest.approx(played - 0.2 * repeated, abs=1e-12)


def test_repeats_are_those_of_a_comparison_of_all_pairs():
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(300):
        moves = [str(each) for each in np.array(["Up", "Down"])[rng.integers(2, size=rng.integers(1, 14))]]
        runs = [tuple(moves[start : start + 4]) for start in range(len(moves) - 3)]
        twice = any(runs[i] == runs[j] for i in range(len(runs)) for j in range(i + 4, len(runs)))
        expected = 0.5 - 0.1 + len(moves) / 20 + 0.001 - 0.2 * twice
        assert published(", ".join(moves), rows=["@$.", "###"]) == pytest.approx(expected, abs=1e-12)
        found.add(twice)
    assert found == {True, False}


@pytest.mark.parametrize(
    "text",
    [
        f"<answer>{SOLUTION}</answer>",
        f"<think></think><answer>{SOLUTION}</answer>",
        f"so <think>so</think><answer>{SOLUTION}</answer>",
        "<think>so</think><answer>Right, Right, Right, Jump</answer>",
        "<think>so</think><answer></answer>",
        "",
    ],
)
def test_a_broken_format_or_an_unknown_action_earns_nothing(text):
    assert SokobanReturn()(sample(), Completion(text=text, num_tokens=9, truncated=False)) == 0.0


@pytest.mark.parametrize("reward", [SokobanReturn(), SokobanSolved()])
def test_a_sample_without_a_level_is_an_error_whatever_the_answer(reward):
    with pytest.raises(DataError, match="sample 'q7' has no level"):
        reward(Sample(id="q7", messages=(), solution=SOLUTION), completion(""))


@pytest.mark.parametrize("reward", [SokobanReturn, SokobanSolved])
def test_a_bound_below_one_is_refused(reward):
    with pytest.raises(ConfigError, match="max_actions is 0; it must be at least 1"):
        reward(max_actions=0)
