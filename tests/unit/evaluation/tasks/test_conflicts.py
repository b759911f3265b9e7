"""What an answer follows where picture and sound contradict each other, and whether its thought says so."""

import json

import pytest

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.intervals import ClusterBootstrap
from lightning_mmrl.evaluation.tasks.conflicts import Conflicts
from lightning_mmrl.types.records import Completion, Sample

LABELS = ("angry", "happy", "sad", "fear")
CUES = {"face": {"lowered": ["lowered brows"], "smile": ["smile"]}, "voice": {"fast": ["fast"], "shaky": ["shaky"]}}
COMBINED = {"lowered+fast": "angry", "smile+fast": "happy", "lowered+shaky": "sad", "smile+shaky": "fear"}


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"labels": LABELS, "cues": CUES, "cue_to_label": COMBINED}))
    return Conflicts(labels=LABELS, cue_lexicon=str(path))


def sample(picture=("angry", "sad"), sound="happy", name="a", **more):
    extras = {"picture_truth": list(picture) if isinstance(picture, tuple) else picture, "sound_truth": sound}
    return Sample(id=name, messages=(), extras={**extras, **more})


def judged(task, text, of=None):
    return task.judge(of or sample(), Completion(text=text, num_tokens=3, truncated=False))


def said(label, think="x"):
    return f"<think>{think}</think><answer>{label}</answer>"


@pytest.mark.parametrize(
    ("text", "follows"),
    [
        (said("sad"), "follows_picture"),
        (said("Happy."), "follows_sound"),
        (said("fear"), "neither"),
        (said("bored"), "unparseable"),
        ("", "unparseable"),
    ],
)
def test_an_answer_follows_one_of_four_things(task, text, follows):
    scores = judged(task, text).scores
    shares = ("follows_picture", "follows_sound", "neither", "unparseable")
    assert {name for name in shares if scores[name]} == {follows}
    assert scores["leaning"] == {"follows_picture": 1.0, "follows_sound": -1.0}.get(follows, 0.0)


@pytest.mark.parametrize(
    ("think", "label", "followed", "both"),
    [
        ("lowered brows and fast", "angry", 1.0, 1.0),
        ("lowered brows", "angry", 1.0, 0.0),
        ("fast", "angry", 0.0, 0.0),
        ("fast", "happy", 1.0, 0.0),
        ("smile and shaky", "angry", 0.0, 0.0),
        ("lowered brows and a smile", "angry", 0.0, 0.0),
        ("lowered brows and fast", "fear", 0.0, 1.0),
    ],
)
def test_a_thought_names_what_the_answer_follows_or_the_whole_conflict(task, think, label, followed, both):
    """The picture shows lowered brows (angry or sad), the sound a fast voice (happy; angry would be no conflict)."""
    scores = judged(task, said(label, think)).scores
    assert (scores["names_followed"], scores["names_both"]) == (followed, both)


def test_shares_have_intervals_and_what_is_named_is_a_share_of_what_follows(task):
    answers = [said("angry", "lowered brows"), said("angry", "fast"), said("happy", "fast"), said("fear"), ""]
    found = [judged(task, text, sample(name=str(place))) for place, text in enumerate(answers)]
    metrics = task.metrics(found)
    assert metrics["follows_picture"] == pytest.approx(2 / 5)
    assert metrics["follows_sound"] == metrics["neither"] == metrics["unparseable"] == pytest.approx(1 / 5)
    assert metrics["names_followed"] == pytest.approx(2 / 3)
    assert metrics["leaning"] == pytest.approx(1 / 5)
    intervals = ClusterBootstrap().intervals(found, task)
    assert {"follows_picture", "follows_sound", "neither", "unparseable", "leaning"} == set(intervals)


def test_without_cue_phrases_there_are_no_metrics_of_thoughts():
    task = Conflicts(labels=LABELS)
    metrics = task.metrics([judged(task, said("sad", "lowered brows"))])
    assert not {"names_followed", "names_both"} & metrics.keys()
    assert not {"names_followed", "names_both"} & set(task.metric_names())


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (sample(sound=None), "sample 'a' has None in the column sound_truth; give a label, or a list of labels"),
        (sample(picture=[]), "has [] in the column picture_truth"),
        (sample(sound="bored"), "has 'bored' in the column sound_truth, which is none of the labels angry"),
        (sample(picture=[3]), "has '3' in the column picture_truth, which is none of the labels"),
        (sample(sound="sad"), "has 'sad' in both picture_truth and sound_truth, so they do not contradict"),
    ],
)
def test_a_sample_without_a_conflict_is_refused_with_its_column(of, message, task):
    with pytest.raises(DataError) as caught:
        task.check("conflict.jsonl", [sample(name="fine"), of])
    assert str(caught.value).startswith("conflict.jsonl: sample 'a' has ")
    assert message in str(caught.value)
