r"""Format rewards against the regular expressions of the released codes, and the hard format-result over any judge."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.errors import ConfigError, RewardError
from lightning_mmrl.rewards.emotion_set import EmotionSet
from lightning_mmrl.rewards.hard_format_result import HardFormatResult
from lightning_mmrl.rewards.mixed_answer import MixedAnswer
from lightning_mmrl.rewards.text_answer import TextAnswer
from lightning_mmrl.rewards.think_answer_format import ThinkAnswerFormat
from lightning_mmrl.rewards.think_boxed_format import ThinkBoxedFormat
from lightning_mmrl.types.records import Completion, Sample

SAMPLE = Sample(id="q", messages=(), solution="left")
MM_EUREKA = re.compile(
    r"^(?!.*<think>.*<think>)(?!.*</think>.*</think>)(?!.*<answer>.*<answer>)(?!.*</answer>.*</answer>)"
    r".*<think>(.+?)</think>\s*<answer>.+?</answer>.*$",
    re.DOTALL,
)
"""The format of MM-Eureka as its code states it: each tag once, text around allowed, none between."""
PIECES = ("<think>", "</think>", "<answer>", "</answer>", " ", "a", "so it is", "\n")


def written(text):
    return Completion(text=text, num_tokens=9, truncated=False)


@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_the_format_with_text_around_is_mm_eurekas_where_nothing_is_blank(text):
    ours = ThinkAnswerFormat(allow_around=True)(SAMPLE, written(text)) == 1.0
    found = MM_EUREKA.search(text)
    if found is None:
        assert not ours
    else:
        inner = re.search(r"<think>(.*?)</think>\s*<answer>(.*?)</answer>", text, re.DOTALL)
        nested = any("<" in each for each in inner.groups())
        assert ours == (all(each.strip() for each in inner.groups()) and not nested)


@pytest.mark.parametrize(
    ("text", "strict", "around"),
    [
        ("<think>so</think><answer>7</answer>", 1.0, 1.0),
        ("Well, <think>so</think>\n<answer>7</answer> Done.", 0.0, 1.0),
        ("<think>so</think> hence <answer>7</answer>", 0.0, 0.0),
        ("<think>so</think><answer>7</answer><answer>7</answer>", 0.0, 0.0),
        ("<think> </think><answer>7</answer>", 0.0, 0.0),
    ],
)
def test_text_around_the_tags_must_be_asked_for(text, strict, around):
    assert ThinkAnswerFormat()(SAMPLE, written(text)) == strict
    assert ThinkAnswerFormat(allow_around=True)(SAMPLE, written(text)) == around


@pytest.mark.parametrize(("length", "value"), [(299, 0.0), (300, 1.0)])
def test_a_base_model_must_think_for_300_characters(length, value):
    padded = f"x<think>  {'a' * length} \n</think><answer>7</answer>"
    reward = ThinkAnswerFormat(allow_around=True, min_think_characters=300)
    assert reward(SAMPLE, written(padded)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"<think>so</think>\boxed{7}", 1.0),
        (r" <think>so</think> It is \boxed{7}, that is \boxed{7}.", 1.0),
        (r"<think>so</think>\boxed{}", 0.0),
        (r"<think>so</think>\boxed{7} or \boxed{8}", 0.0),
        (r"<think>so \boxed{7}</think>", 0.0),
        (r"<think>so</think><think>so</think>\boxed{7}", 0.0),
        (r"<think>.</think>\boxed{7}", 0.0),
        (r"so</think>\boxed{7}", 0.0),
        (r"Well, <think>so</think>\boxed{7}", 0.0),
        (r"\boxed{7}", 0.0),
    ],
)
def test_a_thought_then_a_box(text, value):
    assert ThinkBoxedFormat()(SAMPLE, written(text)) == value


def test_a_length_below_zero_is_refused():
    for kind in (ThinkAnswerFormat, ThinkBoxedFormat):
        with pytest.raises(ConfigError, match="min_think_characters is -1; it must be at least 0"):
            kind(min_think_characters=-1)


CASES = [
    (TextAnswer(reading="boxed"), "left", "left", "right"),
    (MixedAnswer(reading="boxed"), r"$\frac{1}{2}$", "0.5", "0.25"),
    (MixedAnswer(reading="boxed"), "A", r"\text{A}", "B"),
    (EmotionSet(reading="boxed"), "happy", "joyful", "sad"),
]


@pytest.mark.parametrize(("judge", "solution", "right", "wrong"), CASES)
def test_hard_format_result_over_any_judge(judge, solution, right, wrong):
    """All four cells of the truth table; either one alone is not enough."""
    reward = HardFormatResult(format=ThinkBoxedFormat(), result=judge)
    sample = Sample(id="q", messages=(), solution=solution)
    texts = [f"{thought}\\boxed{{{answer}}}" for thought in ("<think>so</think>", "") for answer in (right, wrong)]
    assert [reward(sample, written(text)) for text in texts] == [1.0, 0.0, 0.0, 0.0]
    assert [judge(sample, written(text)) for text in texts] == [1.0, 0.0, 1.0, 0.0]
    assert reward.check_gold(sample) == judge.check_gold(sample)


def test_hard_format_result_reads_golds_as_its_judge_does():
    reward = HardFormatResult(format=ThinkBoxedFormat(), result=MixedAnswer())
    with pytest.raises(RewardError, match="write the text of the answer"):
        reward.check_gold(Sample(id="q", messages=(), solution="?"))
    assert HardFormatResult(format=ThinkBoxedFormat(), result=ThinkBoxedFormat()).check_gold(SAMPLE) is None
