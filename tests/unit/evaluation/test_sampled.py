"""Questions that were answered several times: what is judged, written and measured."""

import pytest

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.intervals import ClusterBootstrap
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.sampled import SampledAnswers
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.evaluation.tasks.mathematics import Mathematics
from lightning_mmrl.evaluation.tasks.multiple_choice import MultipleChoice
from lightning_mmrl.evaluation.tasks.open_vocabulary import OpenVocabulary
from lightning_mmrl.registry.tasks import VALIDATION, task_of_result
from lightning_mmrl.rewards.choice_answer import ChoiceAnswer
from lightning_mmrl.settings.run import EvaluationSettings
from lightning_mmrl.types.records import Completion, Sample

LABELS = ClosedLabels(labels=("angry", "sad", "happy"))
SAMPLE = Sample(id="clip", messages=(), solution="sad", speaker="s1")


def completion(answer):
    return Completion(text=f"<think>a face</think><answer>{answer}</answer>", num_tokens=5, truncated=False)


def judged(*answers, task=LABELS, sample=SAMPLE):
    several = SampledAnswers(whole=task, num_answers=len(answers))
    return several.judge_all(sample, [completion(each) for each in answers])


def test_a_question_is_summed_up_and_keeps_its_completions():
    found = judged("angry", "sad", "nothing", "sad")
    assert found.scores == pytest.approx(
        {"pass_at_1": 1 / 2, "pass_at_2": 5 / 6, "pass_at_4": 1.0}
        | {"maj_at_2": 4 / 6, "maj_at_4": 1.0, "formatted": 1.0, "unread": 1 / 4},
        abs=1e-12,
    )
    assert (found.predicted, found.truth, found.speaker) == ("sad", "sad", "s1")
    assert [each.predicted for each in found.completions] == ["angry", "sad", None, "sad"]
    assert Judgement.from_json(found.to_json()) == found


def test_the_answer_that_is_shown_is_the_first_of_those_with_the_most_votes():
    assert judged("happy", "sad", "sad", "happy").predicted == "happy"
    assert judged("nothing", "sad").text == completion("sad").text
    assert judged("nothing", "that").predicted is None


def test_all_unparsed_is_wrong_for_every_k():
    scores = judged("x", "y", "x", "x").scores
    assert {name for name, value in scores.items() if value} == {"formatted", "unread"}


def test_a_left_out_question_counts_as_wrong():
    task = SampledAnswers(whole=LABELS, num_answers=2)
    assert task.unanswered(SAMPLE).scores["pass_at_2"] == 0
    assert set(task.validated_names()) >= {"pass_at_1", "pass_at_2", "maj_at_2"}


def test_each_task_says_how_right_an_answer_is():
    quiz = judged(
        "A", "B", task=MultipleChoice(reader=ChoiceAnswer()), sample=Sample(id="q", messages=(), solution="A")
    )
    assert quiz.scores["pass_at_1"] == 0.5
    words = judged("happy", "sad, happy", task=OpenVocabulary(), sample=Sample(id="w", messages=(), solution="happy"))
    assert words.scores["pass_at_2"] == 1.0
    assert words.scores["pass_at_1"] == pytest.approx((1 + 2 / 3) / 2)
    math = Mathematics(verifier=lambda sample, completion: 0.0)
    right = Judgement(
        sample_id="m", speaker=None, truth="2", predicted="2", valid_format=True, text="", scores={"accuracy": 1.0}
    )
    assert math.rightness(right) == 1.0


def test_metrics_are_means_over_questions_with_intervals_over_speakers():
    answers = [["sad", "sad"], ["angry", "sad"], ["angry", "x"], ["x", "x"]]
    task = SampledAnswers(whole=LABELS, num_answers=2)
    found = [
        task.judge_all(
            Sample(id=f"c{place}", messages=(), solution="sad", speaker=f"s{place}"), list(map(completion, each))
        )
        for place, each in enumerate(answers)
    ]
    assert task.metrics(found) == pytest.approx(
        {"pass_at_1": 3 / 8, "pass_at_2": 1 / 2, "maj_at_2": 3 / 8, "formatted": 1.0, "unread": 3 / 8}
    )
    intervals = ClusterBootstrap(settings=EvaluationSettings(num_resamples=50)).intervals(found, task)
    assert set(intervals) == {"pass_at_1", "pass_at_2", "maj_at_2"}
    assert {each.unit for each in intervals.values()} == {"speaker"}


def test_a_result_is_read_by_its_own_task_also_if_samples_are_no_longer_asked_for():
    plain = {"test": LABELS, VALIDATION: LABELS}
    asked = plain | {"test-sampled": SampledAnswers(whole=LABELS, num_answers=8)}
    assert task_of_result("test-sampled", asked).metric_names()[:4] == [f"pass_at_{k}" for k in (1, 2, 4, 8)]
    assert task_of_result("test-sampled", plain).headline == "pass_at_1"
    assert task_of_result("test-no_think", plain) is LABELS


@pytest.mark.parametrize(
    ("old", "new"), [('"completions": [', '"completions": [3, '), ('"completions": [{', '"completions": [[], {')]
)
def test_damaged_completions_are_refused(old, new):
    line = judged("sad", "sad").to_json()
    with pytest.raises(DataError, match="a prediction needs the keys"):
        Judgement.from_json(line.replace(old, new))
    with pytest.raises(DataError, match="must be a list, found int"):
        Judgement.from_json('{"completions": 3, ' + judged("sad").completions[0].to_json()[1:])
