"""The statement of a mathematical answer, before math-verify compares it."""

from fractions import Fraction

import pytest

from lightning_mmrl.rewards.formulas import bracketed, is_well_formed
from lightning_mmrl.rewards.math_answer import MathAnswer
from lightning_mmrl.rewards.mathematics import read_mathematics
from lightning_mmrl.rewards.units import UNITS, read_unit
from lightning_mmrl.types.records import Completion, Message, Sample


def reward(solution, answer, question=""):
    text = f"<think>Count.</think><answer>{answer}</answer>"
    return MathAnswer(timeout_s=1)(
        Sample(id="sum", messages=(Message(role="user", content=question),), solution=solution),
        Completion(text=text, num_tokens=9, truncated=False),
    )


@pytest.mark.parametrize(
    ("solution", "paid", "unpaid"),
    [
        ("1, 2", ["1, 2", "2, 1", "x = 1 or x = 2", "{2, 1}", "1 and 2", "$1$ and $2$"],
         ["2", "1, 3", "1, 2, 3", "1, 1", "(1, 2)"]),
        ("{1, 2}", ["1, 2", r"\{2, 1\}", "$1, 2$"], ["1", "{1}", "{1, 2, 3}"]),
        ("-3, 4", ["4 and -3", r"\boxed{-3}, \boxed{4}"], ["-3", "3, 4", "-3 + 4"]),
        ("5", ["5 apples", "5 cm", "5 m/s", "$5$ dollars", "$5", "5 square units", "5\u00b0"],
         ["5 million", "5 dozen", "5 percent", "5 below zero", "5 squared", "5 hundredths", "half of 5", "5 or so"]),
        ("5 cm", ["0.05 m", "50 mm", "5 centimeters", "5", "$5\\text{ cm}$"],
         ["5 m", "5 cm^2", "5 g", "5 cm/s", "5 percent", "5 apples"]),
        ("$5\\text{ cm}$", ["5 cm", "0.05 m"], ["5 m", "0.5 m"]),
        ("40 km/h", ["40 kilometers per hour", "40,000 m/h", "40"], ["40 km", "40 m/s", "40 h"]),
        ("90 minutes", ["1.5 h", "5400 s", "1 1/2 hours"], ["1.5 minutes", "90 hours", "90 km"]),
        ("50%", ["50 percent", "0.5", "1/2", "50", "50\\%"], ["5%", "500", "0.05", "50 apples"]),
        ("7", ["\u0037", "\uff17", "7\u3002", "$$7$$", r"\[7\]", r"\(7\)", "**7**", "`7`", "7.", "x = 7", "2 + 5 = 7",
               "The answer is 7!"],
         ["7!", "7?", "7x", "x^7", "7:1", "7 = 8", "x \u2260 7", "\u00b17", "~7", "7\u200b0", "7 8", "x7"]),
        ("-5", ["\u22125", "\u20135", "minus 5", "negative 5"], ["5", "- -5"]),
        ("0.5", [".5", "\u00bd", "1/2", r"\frac12", "50%"], ["5", "2", "\u00bc"]),
        ("2.5", ["2\u00bd", "2 1/2", r"2\frac{1}{2}", "5/2", "2,5"], ["2, 5", "21/2"]),
        ("x^2+1", ["x^2+1", "1 + x^2", "x\u00b2 + 1", "$x^{2}+1$", "x**2 + 1", "x*x + 1"],
         ["x^2", "x^2 - 1", "1", "x^{21}"]),
        ("\\pi", ["\u03c0", "pi", "$\\pi$", "\\pi"], ["3.14", "p"]),
        ("(1,2)", ["(1, 2)", "$(1,2)$", r"\left(1, 2\right)", "The point is (1, 2)."],
         ["(2, 1)", "1, 2", "[1, 2]", "(1, 2, 3)", "{1, 2}"]),
        ("x = 7", ["7", "x = 7", "x=7.0", "x is 7"], ["y = 7", "x = 8", "x"]),
        ("x < 3", ["x<3", "3 > x", r"(-\infty, 3)"], ["x > 3", "3", r"x \le 3"]),
        ("\\pm 3", ["3, -3", "x = 3 or x = -3", "\u00b13", "$\\pm 3$"], ["3", "-3"]),
        ("1,234,567", ["1234567", "1 234 567", "$1{,}234{,}567$"], ["1,234", "1234.567"]),
        ("5 yuan", ["5 yuan", "\u00a55", "5 RMB", "5", "5 Yuan"], ["5 yen", "$5", "5 JPY"]),
        ("5 yen", ["5 yen", "\uffe55", "\u00a5 5", "5 Yen"], ["5 yuan", "5 rmb"]),
        ("\u00a55", ["5 yen", "5 yuan", "\u00a55"], ["$5", "5 euros"]),
        ("5 mg", ["5 mg", "0.005 g", "5 Milligrams", "5 milligrams"], ["5 Mg", "5 MG", "5 g"]),
        ("5 ms", ["5 ms", "0.005 s", "5 MILLISECONDS"], ["5 Ms", "5 MS"]),
        ("5 km", ["5 KM", "5 Km", "5 Kilometers"], ["5 KG", "5 m"]),
        ("5 ft", ["5 FT", "5 Feet", "60 Inches"], ["5 IN", "5 in", "5 yd"]),
        ("5 inches", ["5 in", "5 in.", "5 in total"], ["5 in^2", "5 cm"]),
        ("7 apples", ["7", "7 apple", "7 red apples"], ["7 pears", "7 cm or so"]),
        ("$ab$", ["ab", "$ba$"], ["$ac$", "not ab"]),
    ],
)  # fmt: skip
def test_each_kind_of_answer_pays_or_not(solution, paid, unpaid):
    assert [answer for answer in paid if reward(solution, answer) != 1.0] == []
    assert [answer for answer in unpaid if reward(solution, answer) != 0.0] == []


CHANGED = (
    *("7 lakh", "7 crore", "7 grand", "7 short", "7 ago", "7 off", "7 hexadecimal", "less 7", "Less 7", "LESS 7"),
    *("7 lakhs", "7 crore rupees", "7 lakh apples", "7 fewer", "7 too many", "7 minutes ago", "7 points short"),
    *("7 bps", "7 ppm", "7 bn", "7 sixths", "7 plus", "7 fails", "7, short", "short, 7", "a loss of 7", "off by 7"),
    *("the product of 7", "the inverse of 7", "divided by 7", "In hexadecimal, 7", "less = 7", "LESS = 7"),
    *("7 per mille", "7\u4e07", "7 thousandfold", "7 percentage points"),
)


@pytest.mark.parametrize("question", ["", "How many lakh are 5 less, an hour ago? Give a short answer, 5% off."])
def test_a_word_that_changes_a_number_does_not_pay_even_where_the_question_has_it(question):
    assert [answer for answer in CHANGED if reward("7", answer, question) != 0.0] == []


def test_counted_nouns_and_bare_statements_pay_without_the_question():
    answers = (
        *("7 apples", "7 students", "7 people", "7 boxes", "7 different ways", "7 of the apples", "She has 7 left"),
        *("There are 7 girls.", "7 is the answer", "7 in total", "Number of apples = 7", "Total apples: 7"),
        *("Emma has 7 marbles", "The sum of the numbers is 7", "a total of 7 apples", "\u7b54\u6848\u662f7"),
        *(
            "Adding them, the answer is 7",
            "The missing number is 7",
            "which gives us 7",
            "7 meters long",
            "$7 each",
            "7 bananas",
        ),
    )
    assert [answer for answer in answers if reward("7", answer) != 1.0] == []


@pytest.mark.parametrize(
    ("question", "solution", "answer"),
    [
        ("How many apples?", "1", "1 apple"),
        ("How far does the train travel?", "7", "The train travels 7 km"),
        ("Which is the larger number?", "7", "The larger number is 7"),
        ("How many fewer?", "7", "7 fewer"),
        ("How many more does he need?", "7", "he needs 7 more"),
        ("\u6709\u591a\u5c11\u4e2a\u82f9\u679c", "7", "7\u4e2a"),
        ("Wie viele \u00c4pfel?", "7", "7 \u00c4pfel"),
    ],
)
def test_words_of_the_question_may_stand_around_the_number(question, solution, answer):
    assert reward(solution, answer, question) == 1.0
    assert reward(solution, answer) == 0.0


def test_a_solution_may_have_any_words_that_do_not_change_it():
    assert reward("20% off", "20% off") == reward("20% off", "20%") == reward("7\u5343\u514b", "7") == 1.0
    assert reward("20", "20 off") == 0.0


def test_another_number_of_a_word_of_the_question_is_not_named_where_it_judges():
    assert reward("7", "7 lies", "Does he lie?") == reward("7", "7 fails", "Did it fail?") == 0.0
    assert reward("7", "7 missing", "How many are missing?") == 1.0


def test_units_have_one_name_each_and_convert_by_a_rational_number():
    assert all(unit.factor > 0 and isinstance(unit.factor, Fraction) and unit.powers for unit in UNITS.values())
    miles, _ = read_unit("miles per hour")
    assert miles == UNITS["mph"]
    assert read_unit("cubic meters")[0].powers == read_unit("m^3")[0].powers == read_unit("liters")[0].powers
    assert read_unit("square units") == (None, "square units")


def test_a_word_that_is_no_unit_is_a_noun():
    assert read_mathematics("7 red apples")[0].noun == {"red", "apple"}
    assert read_mathematics("7 cm long")[0].noun == set()


@pytest.mark.parametrize(
    "text", ["seven", "", "7 million", "not 7", "7 8", "7 or", "7 or not", "the 7 of 8", "7|8", "word " * 30 + "7"]
)
def test_what_states_nothing_clearly_is_none(text):
    assert read_mathematics(text) is None


@pytest.mark.parametrize(
    "formula",
    ["7)", "(7", "7_5", "7|8", "7 -", "*7", "7..8", r"7\the", r"\frac 7", "7[8", "()", "7 & 8", "7'", "7 = = 8"],
)
def test_a_formula_of_which_a_part_would_be_read_is_none(formula):
    assert not is_well_formed(formula)


def test_brackets_hold_items():
    assert bracketed(r"\{1, \frac{1}{2}\}") == ("\\{", ["1", r"\frac{1}{2}"], "\\}")
    assert bracketed("(x+1)(x-1)") is None
    assert bracketed("(7)") is None
