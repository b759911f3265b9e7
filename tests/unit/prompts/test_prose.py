"""Answers in plain prose: the last sentence, and nothing where tags or the length limit say otherwise."""

import time

import pytest

from lightning_mmrl.prompts.prose import prose_answer
from lightning_mmrl.types.records import Completion


def read(text, truncated=False):
    return prose_answer(Completion(text=text, num_tokens=9, truncated=truncated))


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
