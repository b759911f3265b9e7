import time

import pytest

from lightning_mmrl.errors import RewardError
from lightning_mmrl.protocols.plain import RewardFn
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.math_answer import MathAnswer
from lightning_mmrl.rewards.pool import RewardPool
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.types.records import Completion, Message, Sample


def posed(solution):
    return Sample(id="sum-3", messages=(), solution=solution)


def answered(answer):
    return Completion(text=f"<think>Count.</think><answer>{answer}</answer>", num_tokens=9, truncated=False)


def test_it_meets_the_protocol():
    assert isinstance(MathAnswer(), RewardFn)


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("7", "7"),
        ("7", " 7. "),
        ("7", "7.0"),
        ("7", "14/2"),
        ("7", "3 + 4"),
        ("7", "x = 7"),
        ("7", "\\boxed{7}"),
        ("7", "$\\frac{14}{2}$"),
        ("7", "7 apples"),
        ("1/2", "0.5"),
        ("0.5", "\\frac{1}{2}"),
        ("\\frac{1}{2}", "2/4"),
        ("-3", "-3"),
        ("1,000", "1000"),
        ("$x + 1$", "$1 + x$"),
    ],
)
def test_equal_mathematics_earns_one(solution, answer):
    assert MathAnswer()(posed(solution), answered(answer)) == 1.0


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("7", "8"),
        ("7", "-7"),
        ("7", "seven or eight"),
        ("7", ""),
        ("7", "7 or 5"),
        ("7", "5 6 7 8 9"),
        ("7", "$5$ or $7$"),
        ("7", "7 = " + "0 + " * 80 + "7"),
        ("1/2", "0.49"),
        ("$x + 1$", "$x$"),
    ],
)
def test_everything_else_earns_nothing(solution, answer):
    assert MathAnswer()(posed(solution), answered(answer)) == 0.0


@pytest.mark.parametrize(
    ("solution", "answer", "value"),
    [
        ("1, 2", "2", 0.0),
        ("1, 2", "1, 2", 1.0),
        ("5", "5 million", 0.0),
        (r"$5\text{ cm}$", "5 m", 0.0),
        ("-5", "\u22125", 1.0),
        ("5", "5\u3002", 1.0),
        ("5", "$$5$$", 1.0),
        ("$x^2+1$", "x^2+1", 1.0),
    ],
)
def test_typography_units_and_lists_are_read_before_math_verify_compares(solution, answer, value):
    assert MathAnswer()(posed(solution), answered(answer)) == value


def test_an_answer_needs_its_tags_but_not_the_whole_format():
    text = "<answer>7</answer>"
    assert MathAnswer()(posed("7"), Completion(text=text, num_tokens=3, truncated=False)) == 1.0
    for broken in ("7", text + text, "<think>Maybe <answer>7</answer></think>", "<answer>7"):
        assert MathAnswer()(posed("7"), Completion(text=broken, num_tokens=3, truncated=False)) == 0.0


@pytest.mark.parametrize("solution", [None, "", "angry", "about 7", "not 7", "7 or 8 or so", "seven"])
def test_a_solution_that_is_no_mathematics_is_an_error(solution):
    with pytest.raises(RewardError, match=r"'sum-3' has the solution .* which math-verify cannot read; write a number"):
        MathAnswer()(posed(solution), answered("7"))


@pytest.mark.slow
def test_an_answer_that_overruns_is_invalid_and_costs_only_itself():
    tower = "9^{9^{9^{9^9}}}"
    reward = WeightedReward(
        components={"math": MathAnswer(timeout_s=1)}, settings=RewardSettings(weights={"math": 1.0})
    )
    with RewardPool(reward, RewardSettings(num_workers=1, deadline_s=20.0)) as pool:
        started = time.monotonic()
        [scores] = pool.score([posed("10")], [[answered(tower), answered("10"), answered("9")]])
        assert time.monotonic() - started < 20.0
    assert [score.valid for score in scores] == [False, True, True]
    assert "needed more than 1 s" in scores[0].reason
    assert [score.total for score in scores] == [0.0, 1.0, 0.0]


STORY = Sample(
    id="story",
    messages=(Message(role="user", content="Mia had 10 coins and lost 7. How many coins are left?"),),
    solution="3",
)


def told(text, reading="prose", truncated=False):
    return MathAnswer(reading=reading)(STORY, Completion(text=text, num_tokens=9, truncated=truncated))


@pytest.mark.parametrize(
    ("text", "earned"),
    [
        ("Mia has 10 - 7 = 3 coins left.", 1.0),
        ("Mia had 10 coins and lost 7, so 10 - 7 = 3 coins are left.", 1.0),
        ("There are 3 coins left.", 1.0),
        ("10 - 7 = 3", 1.0),
        ("<think>10 - 7</think><answer>3</answer>", 1.0),
        ("Mia has 10 - 7 = 2 coins left.", 0.0),
        ("Mia has 10 - 7 coins left.", 0.0),
        ("10 - 7", 0.0),
        ("It is 3. I hope this helps!", 1.0),
        ("It is 3, not 4.", 1.0),
        ("I choose 3.", 1.0),
        ("It is 3. I hope so.", 0.0),
        ("It is 3, not 3.", 0.0),
        ("3 choose 1", 0.0),
        ("Mia has 3 or 4 coins left.", 0.0),
        ("Mia has about 3 coins left.", 0.0),
        ("It is not 3.", 0.0),
        ("It is 3. <answer>4</answer>", 0.0),
        ("<answer>10 - 7</answer>", 0.0),
        ("1, 2, 3, 4", 0.0),
        ("", 0.0),
    ],
)
def test_prose_earns_what_its_last_sentence_states(text, earned):
    assert told(text) == earned


def test_prose_must_be_asked_for_and_have_an_end():
    assert told("It is 3.", reading="tag") == 0.0
    assert told("It is 3", truncated=True) == 0.0


def test_only_a_number_must_be_worked_out():
    sample = Sample(id="term", messages=(), solution="$x + 1$")
    assert MathAnswer(reading="prose")(sample, Completion(text="It is $1 + x$.", num_tokens=9, truncated=False)) == 1.0
    assert MathAnswer()(STORY, answered("10 - 7")) == 1.0, "in tags alone, a calculation is a value"
