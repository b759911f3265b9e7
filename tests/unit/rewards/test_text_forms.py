"""Other forms of a text, and texts that look like one; verdicts by hand."""

import pytest

from lightning_mmrl.rewards.text_answer import TextAnswer
from lightning_mmrl.types.records import Completion, Message, Sample

TEXTS = [
    (
        ("trapezoid", "Name the shape."),
        ("a trapezoid", "It is a trapezoid.", "the trapezoid", "trapezoid (I checked it)"),
        (
            "not a trapezoid",
            "a trapezoid or a kite",
            "a trapezoid, a kite",
            "a trapezoid?",
            "a kite",
            "trapezoid (maybe)",
        ),
    ),
    (
        ("light green", "Which color?"),
        ("light-green", "lightgreen", "the light green one", "It is the light green one."),
        ("green", "light", "light or green", "light, green", "not the light green one", "the green one", "light/green"),
    ),
    (("a dog", "What is it?"), ("dog", "the dog"), ("dogs", "a cat", "a dog and a cat", "no dog")),
    (
        ("up", "Which way?"),
        ("upwards", "upward", "Up."),
        ("up or down", "not upwards", "downwards", "upwards?", "up up down"),
    ),
    (
        ("right", "Which way?"),
        ("to the right", "rightwards"),
        ("to the left or right", "to the right?", "not to the right"),
    ),
    (("not able", "Is he?"), ("not able",), ("notable", "able")),
    (
        ("Ann", "Three run. Who is the fastest?"),
        ("Ann is the fastest.", "Ann"),
        (
            "Ben is the fastest",
            "Who is the fastest",
            "Ann is not the fastest",
            "Ann is the fastest or Ben",
            "is the fastest",
        ),
    ),
    (("Ann", "Who is faster, Ann or Ben?"), ("Ann",), ("Ann is faster, Ann or Ben", "Ben is faster, Ann or Ben")),
    (
        ("True", "It rains. Is this true?"),
        ("Yes", "true", "Answer: yes"),
        ("No", "yes or no", "yes and no", "not yes", "Yes?"),
    ),
    (("False", "Is this true?"), ("No", "false"), ("Yes", "no, true", "true")),
    (("True", "Is this not true?"), ("true",), ("Yes", "No")),
    (("True", "Is it false?"), ("true",), ("Yes", "No")),
    (
        ("Cu^{2+}", "Which ion?"),
        ("Cu2+", r"$\mathrm{Cu}^{2+}$"),
        ("Cu+", "Cu2", "Cu2-", "Cu^{3+}", "Cu2+ or Cu+", "not Cu2+"),
    ),
]


@pytest.mark.parametrize(("posed", "paid", "unpaid"), TEXTS)
def test_another_form_of_the_same_text_pays_and_nothing_like_it(posed, paid, unpaid):
    sample = Sample(id="q", messages=(Message(role="user", content=posed[1]),), solution=posed[0])

    def earned(answer):
        return TextAnswer()(sample, Completion(text=f"<answer>{answer}</answer>", num_tokens=9, truncated=False))

    assert [answer for answer in paid if earned(answer) != 1.0] == []
    assert [answer for answer in unpaid if earned(answer) != 0.0] == []
