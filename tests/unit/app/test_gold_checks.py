"""A set whose golds a judge cannot read is refused before training, with the line and the fix."""

from dataclasses import replace

import pytest

from lightning_mmrl.app import gold_checks
from lightning_mmrl.app.gold_checks import gold_check, task_check
from lightning_mmrl.data.samples import RowCheck
from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.tasks.mathematics import Mathematics
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
    gold_check(KEY, judge, settings)("train.jsonl", samples)


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


def of_judge(judge, path=KEY, deadline_s=8.0):
    return gold_check(path, judge, RewardSettings(components={}, weights={}, deadline_s=deadline_s))


def test_the_outcome_is_kept_under_all_that_decides_it(monkeypatch):
    judges = [MathAnswer(), MathAnswer(timeout_s=3), MathAnswer(reading="boxed"), MixedAnswer(), ChoiceAnswer()]
    checks = [*map(of_judge, judges), of_judge(MathAnswer(), deadline_s=9.0)]
    checks += [task_check(Mathematics(verifier=MathAnswer())), task_check(Mathematics(verifier=MixedAnswer()))]
    checks += [task_check(Mathematics(verifier=MathAnswer(), deadline_s=3.0))]
    assert all(isinstance(each, RowCheck) for each in checks)
    keys = [each.key for each in checks]
    assert len(set(keys)) == len(keys)
    for code in ({"mmrl": "other code"}, {**gold_checks._code(), "sympy": "2.0"}):
        with monkeypatch.context() as patch:
            patch.setattr(gold_checks, "_code", lambda code=code: code)
            keys.append(of_judge(MathAnswer()).key)
    assert len(set(keys)) == len(keys)
    # Another stage and a format beside the judge change nothing.
    same = of_judge(HardFormatResult(format=ThinkBoxedFormat(), result=MathAnswer()), path="stages.other.rewards.x")
    assert same.key == keys[0]
    assert [each.slow for each in checks] == [True, True, True, True, False, True, True, True, True]


def test_the_outcome_of_a_judge_that_is_not_known_is_not_kept():
    for judge in (_Hangs(), HardFormatResult(format=ThinkBoxedFormat(), result=_Hangs())):
        assert not isinstance(of_judge(judge), RowCheck)
    assert not isinstance(task_check(Mathematics(verifier=_Hangs())), RowCheck)
    for name in gold_checks.SETTLED:
        assert any(name == f"{type(each).__module__}.{type(each).__qualname__}" for each, *_ in CASES)


def test_a_task_refuses_what_its_judge_cannot_read():
    samples = [Sample(id=f"s{number}", messages=(), solution=each) for number, each in enumerate(("7", "left"))]
    check = task_check(Mathematics(verifier=MathAnswer()))
    check("test.jsonl", samples[:1])
    with pytest.raises(DataError, match=r"^test\.jsonl: sample 's1' has the solution 'left', which cannot be judged"):
        check("test.jsonl", samples)
    check("test.jsonl", [replace(samples[0], solution="1/2")])
