"""Free-form mathematics: verdicts by hand, and a verifier that fails, hangs or dies."""

import os
import time

import pytest

from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.evaluation.tasks.mathematics import Mathematics
from lightning_mmrl.rewards.math_answer import MathAnswer
from lightning_mmrl.types.records import Completion, Sample

SAMPLE = Sample(id="sum", messages=(), solution="1/2", speaker="s1")


def judged(task, text):
    return task.judge(SAMPLE, Completion(text=text, num_tokens=9, truncated=False))


@pytest.fixture(scope="module")
def task():
    return Mathematics(verifier=MathAnswer())


@pytest.mark.parametrize(
    ("text", "predicted", "valid_format", "scores"),
    [
        ("<think>2 of 4</think><answer>0.5</answer>", "0.5", True, (1.0, 0.0)),
        ("<think>2 of 4</think><answer>$\\frac{2}{4}$</answer>", "$\\frac{2}{4}$", True, (1.0, 0.0)),
        ("<answer>50 %</answer>", "50 %", False, (1.0, 0.0)),
        ("<think>2 of 4</think><answer>2</answer>", "2", True, (0.0, 0.0)),
        ("<think>2 of 4</think><answer>0.5 or 2</answer>", "0.5 or 2", True, (0.0, 0.0)),
        ("0.5", None, False, (0.0, 1.0)),
        ("<answer>0.5</answer><answer>0.5</answer>", None, False, (0.0, 1.0)),
    ],
)
def test_verdicts_by_hand(task, text, predicted, valid_format, scores):
    found = judged(task, text)
    assert (found.sample_id, found.speaker, found.truth, found.text) == ("sum", "s1", "1/2", text)
    assert (found.predicted, found.valid_format) == (predicted, valid_format)
    assert (found.scores["accuracy"], found.scores["unparseable"], found.scores["unjudged"]) == (*scores, 0.0)


@pytest.mark.parametrize(
    ("text", "predicted", "scores"),
    [
        ("Half. It is 0.5.", "It is 0.5.", (1.0, 0.0)),
        ("It is 2.", "It is 2.", (0.0, 0.0)),
        ("<answer>0.5</answer>", "0.5", (1.0, 0.0)),
        ("It is 0.5. <answer>", None, (0.0, 1.0)),
        ("", None, (0.0, 1.0)),
    ],
)
def test_prose_by_hand(text, predicted, scores):
    found = judged(Mathematics(verifier=MathAnswer(reading="prose")), text)
    assert (found.predicted, found.valid_format) == (predicted, predicted is not None)
    assert (found.scores["accuracy"], found.scores["unparseable"], found.scores["unjudged"]) == (*scores, 0.0)


def test_metrics_by_hand(task):
    texts = ("<think>x</think><answer>0.5</answer>", "<answer>1/2</answer>", "<think>x</think><answer>3</answer>", "")
    values = task.metrics([judged(task, text) for text in texts])
    assert values == {"accuracy": 2 / 4, "valid_format": 2 / 4, "unparseable": 1 / 4, "unjudged": 0.0}


def test_the_refusal_says_what_the_verifier_said(task):
    with pytest.raises(DataError, match=r"^t\.jsonl: sample 'x' has the solution '\?', .*math-verify cannot read"):
        task.check("t.jsonl", [Sample(id="x", messages=(), solution="?")])


def raises(sample, completion):
    raise ValueError("out of ideas")


def hangs(sample, completion):
    if "slow" in completion.text:
        time.sleep(60)
    return 1.0


def dies(sample, completion):
    os._exit(3)


def says_nothing(sample, completion):
    return None


def half(sample, completion):
    return 0.5


@pytest.mark.parametrize("verifier", [raises, dies, says_nothing])
def test_an_answer_without_a_verdict_is_wrong_and_counted(verifier):
    found = judged(Mathematics(verifier=verifier, deadline_s=2.0), "<answer>0.5</answer>")
    assert (found.scores["accuracy"], found.scores["unjudged"], found.predicted) == (0.0, 1.0, "0.5")


def test_a_verifier_that_hangs_costs_its_answer_alone():
    task = Mathematics(verifier=hangs, deadline_s=1.0)
    found = [judged(task, text) for text in ("<answer>slow</answer>", "<answer>1/2</answer>")]
    assert [each.scores["unjudged"] for each in found] == [1.0, 0.0]
    assert [each.scores["accuracy"] for each in found] == [0.0, 1.0]


def test_a_part_of_the_full_value_is_no_right_answer():
    assert judged(Mathematics(verifier=half), "<answer>0.5</answer>").scores["accuracy"] == 0.0


def test_a_deadline_must_be_positive():
    with pytest.raises(ConfigError, match="deadline_s is 0; it must be above 0"):
        Mathematics(verifier=half, deadline_s=0)
