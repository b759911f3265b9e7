"""Answers in plain prose: the last sentence, and nothing where tags or the length limit say otherwise."""

import time

import pytest

from lightning_mmrl.prompts.prose import prose_answer
from lightning_mmrl.types.records import Completion

SMALLEST = "Which number is the smallest: 1, 5 or 269?"


def read(text, question="", truncated=False):
    return prose_answer(Completion(text=text, num_tokens=9, truncated=truncated), question)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("7", "7"),
        ("The answer is 7.", "The answer is 7."),
        ("First 3 + 4. Then we are done. It is 7.\n\n", "It is 7."),
        ("1. Add 3.\n2. Add 4.\nMia has 7 books.", "Mia has 7 books."),
        ('"It is 7." Really!', "Really!"),
        ("It costs 3.50 dollars.", "It costs 3.50 dollars."),
        ("Mia had 9 and lost 2, so she has 7.", "she has 7."),
        ("Mia had 9, thus, and so on, which means that 9 - 2 = 7 are left.", "9 - 2 = 7 are left."),
        ("Mia lost 2, so it is 7? So 8.", "So 8."),
        ("", None),
        (" \n\t\n", None),
    ],
)
def test_the_last_sentence_is_the_answer(text, answer):
    assert read(text) == answer


def test_a_text_that_the_length_limit_ended_states_nothing():
    assert read("It is 7", truncated=True) is None
    assert read("<think>x</think><answer>7</answer>", truncated=True) == "7", "closed tags end an answer"


@pytest.mark.parametrize("text", ["It is 7. </answer>", "<think>It is 7.", "<answer>8</answer> 7 <answer>"])
def test_a_broken_tag_leaves_no_answer(text):
    assert read(text) is None


@pytest.mark.parametrize("piece", [". ", ", so ", "\n", ", and so that, ", '." '])
def test_a_hostile_text_takes_linear_time(piece):
    started = time.process_time()
    read(piece * 200_000 + "7")
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "text",
    [
        "The smallest is 1\n\n269 is the smallest.",
        "It is 1. It is 269.",
        "1\n269",
        "3\n12\n269",
        "The answer is 1. The answer is 269.",
        "The smallest is 1, so 269 is the smallest.",
        "The smallest is 1 and the largest is 269. 269 is the smallest.",
        "The minimum is 1. 269 is the smallest.",
        "The smallest number is 1. 269 is the smallest number of all.",
        "The smallest of 1, 5 and 269 is 1. 269 is the smallest.",
        "The smallest is one. 269 is the smallest.",
        "The smallest is 1.0. The smallest is 269.",
        "Smallest: 1\nSmallest: 269",
        "smallest = 1\nsmallest = 269",
        "The smallest is 1. The answer is 269.",
        "It is not 269. 269 is the smallest.",
        "269 is wrong. 269 is the smallest.",
        "The smallest is $\\frac{1}{2}$. $\\frac{1}{3}$ is the smallest.",
        "The answer is A. The answer is B.",
        "Option A is the smallest. Option B is the smallest.",
        "It is left. It is right.",
        "left\nright",
        "She is sad. She is angry.",
    ],
)
def test_an_earlier_claim_of_another_value_leaves_no_answer(text):
    assert read(text, SMALLEST) is None


@pytest.mark.parametrize(
    "text",
    [
        "The smallest is 269. So the answer is 269.",
        "The smallest is 269\n\n269 is the smallest.",
        "It is 7.0. It is 7.",
        "Tom has 12 apples. He gives away 5. So Tom has 7 apples left.",
        "There are 12 apples. 5 are eaten. There are 7 apples left.",
        "The numbers are 985, 647 and 142. 985 is the largest.",
        "1 is smaller than 5 and 5 is smaller than 269. The smallest is 1.",
        "647 is larger than 271, and 769 is larger than 647. So the largest is 769.",
        "The radius is 5. The answer is 25.",
        "The largest is 9. The smallest is 1. The answer is 8.",
        "12 - 5 is 7. The answer is 9.",
        "2x = 10. x = 5.",
        "x + 5 = 10, so x = 5.",
        "Since 2x = 10, x = 5.",
        "Is it 1? 269 is the smallest.",
        "I think 5 is too big. The smallest is 1.",
        "A triangle has three sides. The answer is 5.",
        "The man is near the door. It is left.",
        "Look at the picture. It is left.",
    ],
)
def test_a_way_to_the_answer_is_no_contradiction(text):
    assert read(text, "What is the difference of the smallest and the largest?") is not None


def test_only_what_the_question_asks_for_speaks_against_a_bare_answer():
    text = "The smallest is 1. The answer is 269."
    assert read(text, "Which is the largest: 1, 5 or 269?") == "The answer is 269."
    assert read(text, SMALLEST) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is 7. I hope this helps!", "It is 7."),
        ("It is 7.\n\nDone.", "It is 7."),
        ("It is 7. That is what was asked.", "It is 7."),
        ("It is 7. It is not 9.", "It is 7."),
        ("It is 7, not 9.", "It is 7"),
        ("It is 7 apples rather than 9 apples.", "It is 7 apples"),
        ("It is not 9 but 7.", "It is 7."),
        ("It is 7 and no other number.", "It is 7"),
        ("It is 7; the rest does not matter.", "It is 7"),
        ("It is 7, as asked.", "It is 7"),
        ("Because 9 does not fit, it is 7.", "it is 7."),
        ("If we count them, we get 7.", "we get 7."),
        ("It is 7 or 9, and I pick 7.", "I pick 7."),
        ("1. 9 is given.\n2. 9 - 2 = 7", "9 - 2 = 7"),
    ],
)
def test_a_remark_is_no_part_of_the_answer(text, answer):
    assert read(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "It is 7. I hope.",
        "It is 7, not 7.",
        "It is 7, not 9?",
        "It is 7, not more than 9.",
        "It is not only 9 but 7.",
        "It is 7; the rest is 9.",
        "It is 7, which is not what was asked.",
        "Because I am not sure about 9, it is 7.",
        "If it is 9, it is 7.",
        "If I am right, it is 7.",
    ],
)
def test_any_other_text_stays_with_the_answer(text):
    assert read(text) == text.rpartition(". ")[2]


@pytest.mark.parametrize(
    "text",
    [
        "It is 1, not 5. It is 269.",
        "Because 5 does not fit, it is 1. It is 269.",
        "It cannot be 5, so it is 1. It is 269.",
        "It is 1 and no other number. It is 269.",
        "Because it is 1, it is 269.",
        "It is 1. If we count again, we get 269.",
        "It is 1, and I pick 269.",
        "Not 5 but 1. It is 269.",
        "1. 1\n2. 269",
        "269 does not fit, so it is 269.",
        "x = 1. x = 269.",
        "x1 = 8. x1 = 269.",
        "It is 1/2. It is \\frac{1}{3}.",
    ],
)
def test_a_remark_hides_no_other_claim(text):
    assert read(text, SMALLEST) is None


@pytest.mark.parametrize(
    ("text", "question", "contradicts"),
    [
        ("The area is 20, so it is 24.", "What is the area of a rectangle?", True),
        ("The area of a rectangle is 20. The answer is 24.", "What is the area of a rectangle?", True),
        ("The area of the circle is 20. The answer is 24.", "What is the area of a rectangle?", False),
        ("The area is 20, so it is 24.", "What is the volume?", False),
        ("The radius is 5, so it is 25.", "What is the area of a circle with a radius of 5?", False),
        ("The area of figure 1 is 20, so it is 24.", "What is the area?", False),
        ("The apples left is 12, so it is 7.", "Tom had 12 apples. How many apples are left?", True),
        ("The apples are 12, so it is 7.", "How many apples are left?", False),
        ("There are 12 apples. It is 7.", "How many apples are left?", False),
    ],
)
def test_a_bare_answer_is_contradicted_by_a_claim_about_what_is_asked(text, question, contradicts):
    assert (read(text, question) is None) == contradicts
