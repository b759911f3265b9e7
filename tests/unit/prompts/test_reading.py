r"""Where an answer is, reading by reading, by hand."""

import time

import pytest

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts import reading
from lightning_mmrl.prompts.boxes import boxes, only_box
from lightning_mmrl.prompts.reading import READINGS, check_reading, find_answer
from lightning_mmrl.types.records import Completion

NAMES = ("tag", "boxed", "tag_or_boxed", "boxed_tag_phrase", "tag_or_text", "prose")
TAGGED = "<think>3 + 4</think><answer>7</answer>"
TABLE = {
    # The text, and the answer under each of NAMES in their order; None: no answer.
    TAGGED: ("7", "7", "7", "7", "7", "7"),
    r"<think>3 + 4</think><answer>It is $\boxed{7}$.</answer>": (
        *(r"It is $\boxed{7}$.", "7", "7", "7"),
        *(r"It is $\boxed{7}$.", r"It is $\boxed{7}$."),
    ),
    r"<think>3 + 4</think>It is $\boxed{7}$.": (None, "7", "7", "7", r"It is $\boxed{7}$.", None),
    r"It is $\boxed{7}$.": (None, "7", "7", "7", r"It is $\boxed{7}$.", r"It is $\boxed{7}$."),
    r"<think>It is \boxed{7}.</think>": (None,) * 6,
    r"<think>It is \boxed{7}.": (None,) * 6,
    r"<think>\boxed{6}?</think>\boxed{7}": (None, "7", "7", "7", r"\boxed{7}", None),
    r"3 + 4</think>\boxed{7}": (None, "7", "7", "7", r"\boxed{7}", None),
    r"\boxed{6} or \boxed{7}": (None, None, None, None, r"\boxed{6} or \boxed{7}", r"\boxed{6} or \boxed{7}"),
    r"\boxed{7} so \boxed{ 7 }": (None, "7", "7", "7", "7", r"\boxed{7} so \boxed{ 7 }"),
    r"\boxed{7} is not \boxed{7}": (
        *(None, "7", "7", "7"),
        *(r"\boxed{7} is not \boxed{7}", r"\boxed{7} is not \boxed{7}"),
    ),
    r"<answer>6</answer>\boxed{7}": ("6", "7", None, "7", "6", "6"),
    r"\boxed{7} <answer>It is $7$.</answer>": (
        *("It is $7$.", "7", "It is $7$.", "7"),
        *("It is $7$.", "It is $7$."),
    ),
    r"<answer>7": (None,) * 6,
    "<think>x</think>So the answer is 7.": (None, "7", None, "7", "So the answer is 7.", None),
    "The answer is 7. Thanks!": (None, "7", None, "7", "The answer is 7. Thanks!", "The answer is 7."),
    "8 does not fit. It is 7.": (
        *(None, "It is 7.", None, "It is 7."),
        *("8 does not fit. It is 7.", "It is 7."),
    ),
    "It is 6. The answer is 7.": (*(None,) * 4, "It is 6. The answer is 7.", None),
    "The answer is 6. No, the answer is 7.": (
        *(None, None, None, None),
        *("The answer is 6. No, the answer is 7.", None),
    ),
    "\u7b54\u6848\u662f7\u3002": (None, "7", None, "7", "\u7b54\u6848\u662f7\u3002", "\u7b54\u6848\u662f7\u3002"),
    "7": (None, None, None, None, "7", "7"),
    "": (None,) * 6,
}


def found(text, name, truncated=False):
    return find_answer(Completion(text=text, num_tokens=9, truncated=truncated), name)


@pytest.mark.parametrize("text", TABLE)
def test_the_table_of_readings(text):
    assert dict(zip(NAMES, TABLE[text], strict=True)) == {name: found(text, name).text for name in NAMES}


def test_the_readings_are_those_of_the_table_and_each_is_documented():
    assert tuple(READINGS) == NAMES
    assert all(f"| `{name}` |" in (reading.__doc__ or "") for name in NAMES)


def test_only_an_end_makes_a_text_an_answer():
    """A closed box or tag is an end of its own."""
    assert {name: found("The answer is 7", name, truncated=True).text for name in NAMES} == dict.fromkeys(NAMES)
    assert found(r"So \boxed{7} and", "boxed", truncated=True).text == "7"
    assert found(r"So \boxed{7", "boxed", truncated=True).text is None


def test_the_format_is_that_of_tags_or_a_box_or_that_there_is_an_answer():
    assert [found(TAGGED, name).valid for name in NAMES] == [True, False, True, True, True, True]
    assert [found("<answer>7</answer>", name).valid for name in ("tag", "tag_or_boxed")] == [False, True]
    assert found(TAGGED, "boxed").think == "3 + 4"
    assert [found(text, "boxed").valid for text in (r"It is \boxed{7}.", "The answer is 7.")] == [True, False]


def test_an_unknown_reading_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"^reading is 'box', which is none; did you mean 'boxed'\?"):
        check_reading("box")


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
        (r"\boxed{\boxed{7}}", [r"\boxed{7}"]),
        (r"\fbox{7} {x} \boxed {8}", ["7", "8"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{x \\ y}", [r"x \\ y"]),
        (r"}} \boxed{7}", ["7"]),
        (r"\boxed{}", [""]),
        (r"\boxed 7", []),
        (r"\boxed{7", None),
        (r"\boxed{7} \boxed{", None),
    ],
)
def test_boxes_by_hand(text, contents):
    assert boxes(text) == contents


def test_boxes_that_differ_are_no_answer():
    assert only_box(r"\boxed{7} \boxed{7.0}") is None
    assert only_box(r"\boxed{x + 1} \boxed{x+1}") == "x+1"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "piece", [r"\boxed{", "}", "{", r"\boxed{7}", "the answer is ", "<think>", "</answer>", "$", "\\"]
)
def test_a_hostile_text_takes_linear_time(name, piece):
    started = time.process_time()
    found(piece * 40_000 + "7", name)
    assert time.process_time() - started < 5
