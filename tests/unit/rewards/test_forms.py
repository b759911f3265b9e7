r"""Other forms of the same answer, and texts that look like one; verdicts by hand."""

import pytest

from lightning_mmrl.rewards.choice_answer import ChoiceAnswer
from lightning_mmrl.rewards.math_answer import MathAnswer
from lightning_mmrl.types.records import Completion, Message, Sample


def earned(reward, solution, answer, question, options=None):
    extras = {} if options is None else {"options": options}
    message = Message(role="user", content=question)
    sample = Sample(id="q", messages=(message,), solution=solution, extras=extras)
    return reward(sample, Completion(text=f"<answer>{answer}</answer>", num_tokens=9, truncated=False))


MATHEMATICS = [
    (
        ("2:5", "In which ratio do they stand?"),
        ("2/5", "0.4", "2 to 5", "two to five", "4:10", "1:2.5", r"\frac{4}{10}"),
        ("5:2", "0:0", "2:0", "2:5:1", "2, 5", "2", "from 2 to 5", "2 to 5 or 5 to 2", "not 2 to 5", "2:5?", "0.5"),
    ),
    (("1:2:3", "Find the ratio."), ("2:4:6", "1 : 2 : 3"), ("1:2", "3:2:1", "2:4:7", "0:0:0", "1:2:3:0")),
    (("10:20", "What time is it?"), ("10:20",), ("1:2", "5:10", "0.5", "20:40")),
    ((r"\frac{1}{6}", "What is the probability?"), ("1:6", "one in six", "1 out of 6"), ("6:1", "1 in 5", "1:6:0")),
    (("7", "Find the ratio."), ("7",), ("7:1", "7 in 10", "14:2", "5 to 7")),
    (
        ("12", "Find x."),
        ("twelve", "It is twelve.", "12 and 12"),
        (
            "twelve or ten",
            "about twelve",
            "not twelve",
            "twelve?",
            "twelve thousand",
            "12 thousand",
            "one two",
            "12 two",
        ),
    ),
    (("2/3", "Find x."), ("two thirds",), ("two or three", "the third", "about two thirds", "two", "three halves")),
    (("2500", "How much, in dollars?"), ("2.5 thousand", "USD 2500"), ("2.5 million", "2500 cents", "USD 25")),
    (
        ("(7, 0)", "Where is Q?"),
        ("7, 0", "Q(7, 0)", "[7, 0]", "x = 7, y = 0", "y = 0, x = 7"),
        (
            "0, 7",
            r"\{7, 0\}",
            "7 or 0",
            "7 and 0",
            "x = 0, y = 7",
            "x = 7 or y = 0",
            "a = 7, b = 0",
            "7, 0, 1",
            "7",
            "70",
        ),
    ),
    (("(2, 5)", "On which interval do these points lie?"), ("(2, 5)",), ("2, 5", "[2, 5]", "x = 2, y = 5", "2 to 5")),
    (("(2, 5)", "Find the midpoint."), ("2, 5", "[2, 5]", "M(2, 5)"), ("5, 2", r"\{2, 5\}", "2 or 5")),
    (
        (r"(-\infty, 3) \cup (3, \infty)", "Find the domain."),
        (r"x \neq 3", r"(3, \infty), (-\infty, 3)", "x \u2260 3"),
        (r"x \neq 4", r"x \neq 3 or 4", r"not x \neq 3", r"x \neq 3?", "x = 3", r"(-\infty, 3)", r"x \neq 30", "3"),
    ),
    (("7", r"Is x \neq 7 right? Find x."), ("7",), (r"x \neq 7",)),
    (("30", "Find the height, in meters."), ("30", "30 m", "0.03 km"), ("30 m^2", "30 feet", "30 cm", "30 kg", "3 m")),
    (("30", "The sides are given in cm. Find the area."), ("30 cm^2", "30"), ("31 cm^2",)),
    (
        (r"\frac{\pi}{4}", "Find the angle in radians."),
        ("45 degrees", r"45^\circ"),
        ("45", "46 degrees", "45 or 46 degrees"),
    ),
    (("25", "Give the share in percent."), ("25", "25%", "25 percent"), ("0.25", "0.25%", "1/4", "2500%")),
    (("45", "Find the angle in degrees."), (r"\frac{\pi}{4} rad", "45"), ("45 rad", r"\pi/4 or 45")),
    (("2 A", "How large is the current?"), ("2000 mA", "two amperes", "I = 2 A"), ("2 mA", "2 V", "2 A or 3 A")),
    ((r"3 kg \cdot m/s", "What is the momentum?"), ("3 kg*m/s", "p = 3 kg*m/s"), ("3 kg", "3 kg*s", "3 m/s")),
    (
        ("$9$", "\u6c42\u9762\u79ef"),
        ("9\u5e73\u65b9\u5398\u7c73", "x\u7b49\u4e8e9"),
        ("9\u4e07", "\u7ea69", "\u4e0d\u662f9"),
    ),
    (("-3", "What is g(2)?"), ("g(2) = -3", "-3 = x"), ("g(3) = -3", "h(2) = -3", "g(2) = 3", "g(2) = -3 or 3")),
    (
        ("y = 3x - 2", "Find the equation of the line."),
        ("3x - y = 2", "3x - 2 = y", "f(x) = 3x - 2", "2y = 6x - 4"),
        (
            "3x - y = 3",
            "y = y",
            "0 = 0",
            "y = 3x",
            "x(y - 3x + 2) = 0",
            "3x - y = 2 or x = y",
            r"y \ge 3x - 2",
            "f(x) = 3x",
        ),
    ),
    (("y = 3x - 2", "Solve 3x - y = 2 for y; give the equation."), ("y = 3x - 2",), ("3x - y = 2", "y - 3x + 2 = 0")),
    (("x = 5", "Solve the equation 2x = 10."), ("5 = x",), ("2x = 10", "x = x", "y = 5")),
    ((r"5\sqrt{2}", "Find y."), (r"\sqrt{50}",), ("7.0710678118654755", "7.07")),
    ((r"5\sqrt{2}", "Find y to the nearest millionth."), ("7.0710678118654755",), ("7.2",)),
    (
        ("9", "Find x."),
        ("9 (I checked it)", "9 (checked twice)."),
        ("9 (I guess)", "9 (or 8)", "9 (not sure)", "9 (maybe)"),
    ),
]


@pytest.mark.parametrize(("posed", "paid", "unpaid"), MATHEMATICS)
def test_another_form_of_the_same_mathematics_pays_and_nothing_like_it(posed, paid, unpaid):
    solution, question = posed
    assert [answer for answer in paid if earned(MathAnswer(), solution, answer, question) != 1.0] == []
    assert [answer for answer in unpaid if earned(MathAnswer(), solution, answer, question) != 0.0] == []


QUESTION = "Which is it?\nA) the cat\nB) the tree\nC) no animal\nD) \u7532"
CHOICES = [
    (
        ("B", QUESTION, None),
        ("a tree", "the tree", "It is the tree.", "the tree is correct", "the B one", "(the tree)", "<B>", "B, B"),
        (
            "a cat",
            "the cat, the tree",
            "the tree or the cat",
            "not the tree",
            "the tree?",
            "maybe the tree",
            "A tree cat",
        ),
    ),
    (
        ("B", QUESTION, None),
        ("B, not A", "B and not C", "ok B", "c'est B"),
        (
            "B, not B",
            "A, not B",
            "not A",
            "not A, not C",
            "B and C",
            "B, not sure",
            "B, A",
            "B B C",
            "B not A?",
            "B B B B B",
        ),
    ),
    (("C", QUESTION, None), ("no animal", "C) no animal"), ("no tree", "B) no animal", "C) the cat", "no")),
    (("D", QUESTION, None), ("\u7532", "the \u7532 one"), ("\u4e59", "B) \u7532")),
    (
        ("B", "Where?", ["left", "right"]),
        ("the right one", "right is correct", "It is right.", "B) right"),
        (
            "A right",
            "It is left, right",
            "left right",
            "the right answer",
            "left is right",
            "the right answer is left",
            "A) right",
        ),
    ),
    (("B", "Is it?", ["yes", "no"]), ("no", "B) no", "the no one"), ("A) no", "yes, no", "no yes", "no?")),
]


@pytest.mark.parametrize(("posed", "paid", "unpaid"), CHOICES)
def test_another_form_of_an_option_pays_and_nothing_like_it(posed, paid, unpaid):
    solution, question, options = posed
    assert [text for text in paid if earned(ChoiceAnswer(), solution, text, question, options) != 1.0] == []
    assert [text for text in unpaid if earned(ChoiceAnswer(), solution, text, question, options) != 0.0] == []


def test_prose_needs_digits_since_an_earlier_claim_in_words_would_not_be_found():
    sample = Sample(id="q", messages=(Message(role="user", content="How many apples are left?"),), solution="7")
    texts = ("There are 7 apples left.", "There are seven apples left.", "I count eight. So seven are left.")
    rewards = [
        MathAnswer(reading="prose")(sample, Completion(text=text, num_tokens=9, truncated=False)) for text in texts
    ]
    assert rewards == [1.0, 0.0, 0.0]
