import json

import pytest

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels, class_indices
from lightning_mmrl.types.records import Completion, Sample

CUES = {
    "labels": ["angry", "sad"],
    "cues": {"face": {"lowered": ["lowered brows"]}, "voice": {"fast": ["fast"], "slow": ["slow"]}},
    "cue_to_label": {"lowered+fast": "angry", "lowered+slow": "sad"},
}
SAMPLE = Sample(id="clip", messages=(), solution="Anger", speaker="s1")


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory):
    path = tmp_path_factory.mktemp("cues") / "labels.json"
    path.write_text(json.dumps(CUES))
    return str(path)


def judged(text, lexicon=None, sample=SAMPLE):
    task = ClosedLabels(labels=("angry", "sad"), cue_lexicon=lexicon)
    return task.judge(sample, Completion(text=text, num_tokens=1, truncated=False))


def test_a_full_answer(lexicon):
    text = "<think>Lowered brows, fast.</think><answer>Anger</answer>"
    assert judged(text, lexicon) == Judgement(
        sample_id="clip", speaker="s1", truth="angry", predicted="angry", valid_format=True, consistent=True, text=text
    )


@pytest.mark.parametrize(
    ("text", "predicted", "valid_format", "consistent"),
    [
        ("<think>Lowered brows, slow.</think><answer>sad</answer>", "sad", True, True),
        ("<think>Lowered brows, slow.</think><answer>angry</answer>", "angry", True, False),
        ("<think>Lowered brows.</think><answer>angry</answer>", "angry", True, False),
        ("<think>No cue.</think><answer>furious</answer>", None, True, False),
        ("<think>Lowered brows, fast.</think><answer>angry sad</answer>", None, True, False),
        ("<answer>angry</answer> Lowered brows, fast.", "angry", False, False),
        ("<think>Lowered brows, fast.</think>angry", None, False, False),
        ("Lowered brows, fast, angry", None, False, False),
    ],
)
def test_parts_are_judged_apart(lexicon, text, predicted, valid_format, consistent):
    prediction = judged(text, lexicon)
    assert (prediction.predicted, prediction.valid_format, prediction.consistent) == (
        predicted,
        valid_format,
        consistent,
    )


def test_without_a_lexicon_consistency_is_unknown():
    assert judged("<think>Lowered brows, fast.</think><answer>angry</answer>").consistent is None


@pytest.mark.parametrize("solution", [None, "calm"])
def test_a_broken_solution_is_an_error(solution):
    with pytest.raises(DataError, match="clip-9"):
        judged("", sample=Sample(id="clip-9", messages=(), solution=solution))


@pytest.mark.parametrize("text", ["", "two\nlines \u6012 \u2028 \x00", "{}", '"'])
def test_json_is_one_ascii_line_and_comes_back(text):
    prediction = judged(text)
    line = prediction.to_json()
    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert Judgement.from_json(line) == prediction


def test_wrong_lines_are_refused():
    good = json.loads(judged("").to_json())
    lines = ["", "nonsense", "[]", json.dumps(good | {"extra": 1})]
    lines.append(json.dumps({key: value for key, value in good.items() if key != "truth"}))
    for line in lines:
        with pytest.raises(DataError, match="prediction"):
            Judgement.from_json(line)


def test_class_indices_follow_the_labels():
    predictions = [judged("<answer>sad</answer>"), judged("?")]
    truth, predicted = class_indices(predictions, ("sad", "angry"))
    assert (truth.tolist(), predicted.tolist()) == ([1, 1], [0, -1])


@pytest.mark.parametrize("labels", [("angry",), ("sad",)])
def test_a_label_outside_the_set_is_an_error(labels):
    with pytest.raises(DataError, match="clip"):
        class_indices([judged("<answer>sad</answer>")], labels)
