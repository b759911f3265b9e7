"""Numbers in words, by hand."""

import pytest

from lightning_mmrl.rewards.spelled import with_digits


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(
            ("zero", "0"),
            ("Nineteen", "19"),
            ("forty", "40"),
            ("forty-two apples", "42 apples"),
            ("one hundred", "100"),
        ),
        *(
            ("nine hundred and ninety-nine", "999"),
            ("twelve thousand three hundred", "12300"),
            ("two million", "2000000"),
        ),
        *(
            ("half", "1/2"),
            ("one half", "1/2"),
            ("three quarters", "3/4"),
            ("five or six", "5 or 6"),
            ("minus one", "minus 1"),
        ),
        *(("1.5 million", "1500000"), ("2,500 thousand", "2500000"), ("5 to 9", "5:9"), ("one in four", "1:4")),
    ],
)
def test_a_number_in_words_becomes_digits(text, expected):
    assert with_digits(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "five six",
            "ten five",
            "twenty twelve",
            "two two",
            "hundred",
            "thousand two thousand",
            "one zero",
            "the third",
        ),
        *(
            "half of it",
            "half a dozen",
            "the right one",
            "no one",
            "7 and a half",
            "seven or 8",
            "3 to 4 to 5",
            "from 3 to 4",
        ),
        *("5 in total", "2^3 to 4", "3 to 4 %", "only", "stone", "someone", "tent", "7 lakh", "dozen", "lone", "often"),
    ],
)
def test_everything_else_stays(text):
    assert with_digits(text) == text
