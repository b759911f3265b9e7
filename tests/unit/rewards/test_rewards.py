import math
import pickle
import subprocess
import sys

import numpy as np
import pytest

from lightning_mmrl.errors import ConfigError, DataError, RewardError
from lightning_mmrl.protocols.plain import RewardFn
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.label_answer import LabelAnswer
from lightning_mmrl.rewards.think_answer_format import ThinkAnswerFormat
from lightning_mmrl.types.records import Completion, Sample

LABELS = ("angry", "happy", "sad")
ANGRY = Sample(id="clip-7", messages=(), solution="angry")


def completion(text):
    return Completion(text=text, num_tokens=len(text), truncated=False)


def answered(answer):
    return completion(f"<think>Knitted brows.</think><answer>{answer}</answer>")


def constant(value):
    return lambda sample, completion: value


def raising(error):
    def reward(sample, completion):
        raise error

    return reward


def test_rewards_meet_the_protocol():
    assert isinstance(ThinkAnswerFormat(), RewardFn)
    assert isinstance(LabelAnswer(labels=LABELS), RewardFn)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("<think>a</think> \n <answer>b</answer>\n", 1.0),
        ("<think></think><answer>b</answer>", 0.0),
        ("<think>a</think><answer></answer>", 0.0),
        ("<think><think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer><answer>b</answer>", 0.0),
        ("ok <think>a</think><answer>b</answer>", 0.0),
    ],
)
def test_format(text, value):
    assert ThinkAnswerFormat()(ANGRY, completion(text)) == value


@pytest.mark.parametrize("answer", ["angry", "Angry", "anger", "angry.", "\nangry\n", "**ANGRY**"])
def test_the_right_label_in_any_dress_earns_one(answer):
    """Exact equality, as in R1-Omni, gives 0 for all but the first, and for a line break inside the tag."""
    assert LabelAnswer(labels=LABELS)(ANGRY, answered(answer)) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        answered("sad").text,
        answered("angry or sad").text,
        answered("not angry").text,
        answered("angry, happy, sad").text,
        answered("").text,
        answered("sad").text + "<answer>angry</answer>",
        "angry",
        "<think>The caption says: answer is angry.</think><answer>sad</answer>",
        "<think>Maybe <answer>angry</answer></think>",
        "<think>x</think><answer>angry",
    ],
)
def test_everything_else_earns_nothing(text):
    assert LabelAnswer(labels=LABELS)(ANGRY, completion(text)) == 0.0


def test_label_and_format_are_measured_apart():
    text = completion("<think>Knitted brows. <answer>angry</answer>")
    assert LabelAnswer(labels=LABELS)(ANGRY, text) == 1.0
    assert ThinkAnswerFormat()(ANGRY, text) == 0.0


def test_the_solution_is_matched_like_an_answer():
    sample = Sample(id="clip", messages=(), solution="Anger")
    assert LabelAnswer(labels=LABELS)(sample, answered("angry")) == 1.0


@pytest.mark.parametrize("solution", [None, "", "calm", "angry or sad"])
def test_a_broken_solution_is_an_error_even_if_the_answer_equals_it(solution):
    sample = Sample(id="clip-7", messages=(), solution=solution)
    with pytest.raises(DataError, match=r"clip-7.*angry"):
        LabelAnswer(labels=LABELS)(sample, answered(solution))


def test_own_synonyms():
    reward = LabelAnswer(labels=["angry"], synonyms={"rage": "angry"})
    assert (reward.match("rage"), reward.match("anger")) == ("angry", None)


def test_total_is_the_weighted_sum_and_components_are_raw():
    reward = WeightedReward(
        components={"label": constant(1), "format": constant(np.float32(0.5)), "extra": constant(True)},
        weights={"label": 2.0, "format": -1.0, "extra": 0},
    )
    score = reward.score(ANGRY, answered("angry"))
    assert score.total == 1.5
    assert score.components == {"label": 1.0, "format": 0.5, "extra": 1.0}
    assert score.valid
    assert score.reason is None


def test_parts_that_do_not_apply_are_left_out():
    reward = WeightedReward(components={"a": constant(None), "b": constant(0.5)}, weights={"a": 1.0, "b": 1.0})
    score = reward.score(ANGRY, answered("angry"))
    assert (score.total, score.components, score.valid) == (0.5, {"b": 0.5}, True)


def test_nothing_applies():
    score = WeightedReward(components={"a": constant(None)}, weights={"a": 1.0}).score(ANGRY, answered("angry"))
    assert (score.valid, score.reason) == (False, "no reward applies")


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (raising(ZeroDivisionError("by zero")), "b: ZeroDivisionError: by zero"),
        (raising(RewardError("no solution")), "b: no solution"),
        (constant(math.nan), "b: returned nan, not a finite number"),
        (constant(-math.inf), "b: returned -inf, not a finite number"),
        (constant("1.0"), "b: returned '1.0', not a finite number"),
        (constant(1j), "b: returned 1j, not a finite number"),
    ],
)
def test_a_failed_part_makes_the_score_invalid_with_its_name(part, reason):
    reward = WeightedReward(components={"a": constant(1.0), "b": part}, weights={"a": 1.0, "b": 0.0})
    score = reward.score(ANGRY, answered("angry"))
    assert (score.valid, score.reason, score.total) == (False, reason, 0.0)


def test_only_exceptions_are_caught():
    with pytest.raises(KeyboardInterrupt):
        WeightedReward(components={"a": raising(KeyboardInterrupt())}, weights={"a": 1.0}).score(
            ANGRY, answered("angry")
        )


@pytest.mark.parametrize(
    ("parts", "weights", "sentence"),
    [
        ({}, {}, "rewards.components is empty"),
        ({"label": constant(1)}, {}, "rewards.weights.label is missing"),
        ({"label": constant(1)}, {"label": 1.0, "lable": 1.0}, "rewards.weights.lable.*did you mean 'label'"),
        ({"label": constant(1)}, {"label": math.inf}, "rewards.weights.label is inf"),
        ({"label": constant(1)}, {"label": "1"}, "rewards.weights.label is '1'"),
    ],
)
def test_wrong_weights_are_refused(parts, weights, sentence):
    with pytest.raises(ConfigError, match=sentence):
        WeightedReward(components=parts, weights=weights)


def test_rewards_survive_pickling():
    reward = WeightedReward(
        components={"label": LabelAnswer(labels=LABELS), "format": ThinkAnswerFormat()},
        weights={"label": 1.0, "format": 1.0},
    )
    assert pickle.loads(pickle.dumps(reward)).score(ANGRY, answered("anger")).total == 2.0


def test_prompts_and_rewards_leave_torch_unloaded():
    modules = ["prompts.scanner", "prompts.template", "prompts.labels", "rewards.compose", "rewards.pool"]
    modules += ["rewards.label_answer", "rewards.think_answer_format"]
    lines = [f"import lightning_mmrl.{module}" for module in modules]
    program = "\n".join(["import sys", *lines, "sys.exit('torch' in sys.modules)"])
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
