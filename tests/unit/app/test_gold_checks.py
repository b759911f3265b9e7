"""A set whose golds a judge cannot read is refused before training, with the line and the fix."""

import pytest

from lightning_mmrl.app.gold_checks import check_golds
from lightning_mmrl.errors import DataError
from lightning_mmrl.rewards.choice_answer import ChoiceAnswer
from lightning_mmrl.rewards.emotion_set import EmotionSet
from lightning_mmrl.rewards.hard_format_result import HardFormatResult
from lightning_mmrl.rewards.label_answer import LabelAnswer
from lightning_mmrl.rewards.math_answer import MathAnswer
from lightning_mmrl.rewards.mixed_answer import MixedAnswer
from lightning_mmrl.rewards.text_answer import TextAnswer
from lightning_mmrl.rewards.think_boxed_format import ThinkBoxedFormat
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.types.records import Sample

KEY = "stages.reason.rewards.components.answer"


def check(judge, *solutions, deadline_s=8.0):
    samples = [Sample(id=f"s{number}", messages=(), solution=each) for number, each in enumerate(solutions)]
    settings = RewardSettings(components={}, weights={}, deadline_s=deadline_s)
    check_golds("train.jsonl", samples, path=KEY, judge=judge, settings=settings)


CASES = [
    (ChoiceAnswer(), "B", "left", "write a letter, or widen choices"),
    (LabelAnswer(labels=("happy", "sad")), "sad", "bored", "correct the manifest or add a synonym"),
    (EmotionSet(), "happy", "seasick", "correct the manifest or add its words to the wheel"),
    (TextAnswer(), "left", "?", "write the text of the answer"),
    (MathAnswer(), r"$\frac{1}{2}$", "left", "write a number or an expression, also in LaTeX"),
    (MixedAnswer(), "left", "...", "write the text of the answer"),
]


@pytest.mark.parametrize(("judge", "good", "bad", "fix"), CASES, ids=lambda each: type(each).__name__)
def test_the_refusal_names_manifest_sample_solution_fix_and_judge(judge, good, bad, fix):
    for each in (judge, HardFormatResult(format=ThinkBoxedFormat(), result=judge)):
        check(each, good, good)
        message = rf"^train\.jsonl: sample 's1' has the solution '{bad}', .*{fix}; {KEY} is the judge, and another"
        with pytest.raises(DataError, match=message.replace("?", r"\?") if bad == "?" else message):
            check(each, good, bad)


def test_a_solution_on_which_a_judge_hangs_is_refused_too():
    with pytest.raises(DataError, match=r"^train\.jsonl: .*stages\.reason\.rewards\.components\.answer is the judge"):
        check(_Hangs(), "7", deadline_s=1.0)


class _Hangs:
    """Reads for ever, as sympy may."""

    def check_gold(self, sample):
        while True:
            pass
