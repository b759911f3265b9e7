"""Sets of words: precision, recall and F1 against Python sets, and against the reward that reads the same words."""

from dataclasses import replace

import numpy as np
import pytest

from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.open_vocabulary import OpenVocabulary
from lightning_mmrl.rewards.emotion_set import EmotionSet
from lightning_mmrl.types.records import Completion, Sample

TASK = OpenVocabulary()
SAMPLE = Sample(id="clip", messages=(), solution="happy, hopeful and sad, seasick")


def judged(answer, task=TASK, sample=SAMPLE):
    text = f"<think>so</think><answer>{answer}</answer>"
    return task.judge(sample, Completion(text=text, num_tokens=9, truncated=False))


CASES = {
    "joyful, lonely": {"joy", "sadness"},
    "joyful": {"joy"},
    "cheerful, glad": {"joy"},
    "angry": {"anger"},
    "He feels sad and angry.": {"sadness", "anger"},
    "sad, seasick": {"sadness", "unknown seasick"},
    "sad, not angry": None,
    "sad or angry": None,
    ", ".join(["sad"] * 9): None,
}


@pytest.mark.parametrize(("answer", "named"), CASES.items())
def test_a_sample_by_sets(answer, named):
    """The solution is of joy and sadness; seasick is not on the wheel."""
    found, truth = judged(answer), {"joy", "sadness"}
    assert found.truth == "joy, sadness"
    assert found.predicted == (None if named is None else ", ".join(sorted(named)))
    right = len((named or set()) & truth)
    precision, recall = right / len(named) if named else 0.0, right / len(truth)
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    expected = {"precision": precision, "recall": recall, "f1": f1, "unparseable": float(named is None)}
    assert {name: found.scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert (found.scores["hit_rate"], found.scores["set_accuracy"]) == (float(right > 0), float(named == truth))
    known = [each for each in named or () if not each.startswith("unknown")]
    assert found.scores["wheel_precision"] == pytest.approx(right / len(known) if known else 0.0)


def test_metrics_are_means_over_samples():
    found = [judged(answer) for answer in CASES]
    values = TASK.metrics(found)
    for name in ("f1", "precision", "recall", "unparseable"):
        assert values[name] == pytest.approx(float(np.mean([each.scores[name] for each in found])), abs=1e-12)
    assert values["valid_format"] == 1.0


def test_answers_that_an_earlier_version_judged_have_all_metrics():
    now = [judged(answer) for answer in CASES]
    before = [
        replace(each, scores={name: each.scores[name] for name in ("f1", "precision", "recall", "unparseable")})
        for each in now
    ]
    assert TASK.metrics([Judgement.from_json(each.to_json()) for each in before]) == TASK.metrics(now)
    with pytest.raises(DataError, match="has no 'f1', so it was judged by another task"):
        TASK.metrics([replace(now[0], scores={"accuracy": 1.0})])


def test_f1_is_the_reward_without_its_penalty():
    reward = EmotionSet(extra_penalty=0.0)
    for answer in CASES:
        found = judged(answer)
        assert reward(SAMPLE, Completion(text=found.text, num_tokens=9, truncated=False)) == pytest.approx(
            found.scores["f1"], abs=1e-12
        )


def test_a_wheel_of_the_users_own(tmp_path):
    path = tmp_path / "wheel.yaml"
    path.write_text("dog: animal\ncat: animal\noak: plant\n")
    found = judged("cat, oak", OpenVocabulary(wheel=str(path)), Sample(id="p", messages=(), solution="dog"))
    assert (found.truth, found.predicted, found.scores["precision"]) == ("animal", "animal, plant", 0.5)
    with pytest.raises(ConfigError, match="cannot be read"):
        OpenVocabulary(wheel=str(tmp_path / "none.yaml")).truth(SAMPLE)
