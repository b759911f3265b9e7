import json

import pytest

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.breakdown import breakdown, breakdown_lines
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.evaluation.tasks.open_vocabulary import OpenVocabulary


def judgement(number, predicted="a", text="So a.", **more):
    return Judgement(
        sample_id=f"s{number}", speaker=None, truth="a", predicted=predicted, valid_format=True, text=text, **more
    )


ROWS = [
    judgement(0, subject="algebra", num_tokens=0, truncated=False, text=""),
    judgement(1, subject="algebra", num_tokens=1, truncated=False, text="Wait, a."),
    judgement(2, predicted="b", num_tokens=31, truncated=False, text="Hmm, b."),
    judgement(3, predicted=None, subject="sets", num_tokens=32, truncated=True, text="No idea; wait"),
    judgement(4, predicted="b", subject="sets", num_tokens=16, truncated=False, text="Waiting for b."),
]


def rights(rows):
    return [ClosedLabels(labels=("a", "b")).is_right(each) for each in rows]


def test_every_part_is_counted_by_hand():
    assert breakdown(ROWS, rights(ROWS)) == {
        "by_subject": {
            "algebra": {"num_samples": 2, "accuracy": 1.0},
            "sets": {"num_samples": 2, "accuracy": 0.0},
        },
        "by_length": [
            {"at_least": 0, "below": 1, "num_samples": 1, "accuracy": 1.0},
            {"at_least": 1, "below": 2, "num_samples": 1, "accuracy": 1.0},
            {"at_least": 16, "below": 32, "num_samples": 2, "accuracy": 0.0},
            {"at_least": 32, "below": 64, "num_samples": 1, "accuracy": 0.0},
        ],
        "aha": {"right": {"num_samples": 2, "rate": 0.5}, "wrong": {"num_samples": 3, "rate": 2 / 3}},
        "truncated": 0.2,
    }


def test_bins_hold_the_lengths_that_they_say():
    rows = [judgement(number, num_tokens=number) for number in range(300)]
    bins = breakdown(rows, [True] * len(rows))["by_length"]
    assert [each["below"] for each in bins[:-1]] == [each["at_least"] for each in bins[1:]]
    for each in bins:
        assert each["num_samples"] == sum(each["at_least"] <= number < each["below"] for number in range(300))


def test_a_share_of_nothing_is_none():
    assert breakdown([], []) == {
        "by_subject": {},
        "by_length": [],
        "aha": {name: {"num_samples": 0, "rate": None} for name in ("right", "wrong")},
        "truncated": None,
    }


def test_lines_of_older_versions_are_read_and_say_less():
    old = '{"sample_id": "s", "speaker": null, "truth": "a", "predicted": "a", "valid_format": true, '
    old += '"consistent": null, "text": "a"}'
    read = Judgement.from_json(old)
    assert json.loads(read.to_json()) == json.loads(old)
    found = breakdown([read], rights([read]))
    assert (found["by_subject"], found["by_length"], found["truncated"]) == ({}, [], None)
    assert found["aha"]["right"] == {"num_samples": 1, "rate": 0.0}


@pytest.mark.parametrize("row", ROWS)
def test_new_keys_come_back_and_a_line_lacks_what_is_unknown(row):
    assert Judgement.from_json(row.to_json()) == row
    assert ("subject" in json.loads(row.to_json())) == (row.subject is not None)
    with pytest.raises(DataError, match="a prediction needs the keys"):
        Judgement.from_json(row.to_json()[:-1] + ', "subjects": "x"}')


@pytest.mark.parametrize(("score", "is_right"), [(1.0, True), (0.99, False), (0.0, False)])
def test_an_answer_with_a_headline_score_is_right_from_1_on(score, is_right):
    assert OpenVocabulary().is_right(judgement(0, predicted=None, scores={"f1": score})) == is_right


def test_lines_say_what_there_is_to_say():
    found = breakdown(ROWS, rights(ROWS))
    assert breakdown_lines(found) == [
        "truncated 20.0",
        "reflecting: right 50.0, wrong 66.7",
        "by tokens: 0+ 100.0 (1), 1+ 100.0 (1), 16+ 0.0 (2), 32+ 0.0 (1)",
        "by subject: algebra 100.0 (2), sets 0.0 (2)",
    ]
    assert breakdown_lines(breakdown([], [])) == breakdown_lines({}) == []
    many = breakdown([judgement(number, subject=f"s{number % 9}") for number in range(19)], [True] * 19)
    assert breakdown_lines(many) == [
        "by subject: s0 100.0 (3), s1 100.0 (2), s2 100.0 (2), s3 100.0 (2), s4 100.0 (2), s5 100.0 (2), and 3 more"
    ]
